"""Whether an erasure leaves damaged pictures behind: AR, the share of pictures that look like no class at all.

A picture's distance is the smallest Mahalanobis distance of its features to the mean of any class (Lee et al. 2018, arXiv
1807.03888), where the classes are all cells of style × object and every style's empty scene: a picture that shows something
else than it was asked for, or nothing, is no artifact as long as it is a proper picture. It is *far* beyond the 95 % quantile
of the unedited model's own pictures. AR is read beside that of the unedited model on the same pictures: the covariance is
one for all classes, so that those that spread more (minicanvas: `pop`) have more than 5 % beyond the threshold, others less.

Outcomes are the frames of `bench.metrics.unlearning` with a column `far` (true or false, null where it was not measured).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from bench.errors import BenchError
from bench.files import write_atomic
from bench.metrics.aggregate import Means
from bench.metrics.uncertainty import Array, Share, wilson
from bench.metrics.unlearning import Outcomes, pair, shows
from bench.types import MetricRules, Target, canonical_json

RATES = ("ar_target", "ar_retained", "ar")
"""Over the pictures prompted with the target, over the others, and over both, weighted as they were sampled."""
QUANTILE = 0.95
SHRINKAGE = 0.01
"""Towards the identity; the AUROC of planted artifacts hardly depends on it between 0.001 and 0.1."""

Features = NDArray[np.floating[Any]]
Half = NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class ArtifactReference:
    """What the unedited model's pictures are like, in the features of the network that measures artifacts."""

    means: Half
    """float16 [cells, d], of every class."""
    whitening: Half
    """float16 [d, d]; its product with its transpose is the precision within classes."""
    threshold: float
    """In units of the whitened features: what is beyond it is far."""
    model: str
    """Digest of the unedited model."""
    judge: str
    """Digest of the network."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """How it was made and validated; JSON."""

    @classmethod
    def fit(cls, features: Features, cells: Sequence[str], held_out: Features, model: str, judge: str) -> ArtifactReference:
        """From features [n, d] with a cell each, and features [m, d] of other pictures, whose distances set the threshold.

        The pooled covariance within cells is shrunk by `SHRINKAGE`. Raises ValueError unless some cell has two pictures.
        """
        codes, names = pd.factorize(np.asarray(cells), sort=True)
        if len(features) <= len(names):
            raise ValueError(f"{len(features)} pictures of {len(names)} cells have no covariance within cells")
        means = np.stack([features[codes == code].mean(axis=0, dtype=np.float64) for code in range(len(names))])
        centred = features - means[codes]
        covariance = centred.T @ centred / (len(features) - len(names))
        d = len(covariance)
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / d * np.eye(d)
        variances, axes = np.linalg.eigh(covariance)
        # Rounded before the threshold is set: that one must fit what the file holds.
        found = cls(means.astype(np.float16), (axes / np.sqrt(variances)).astype(np.float16), np.inf, model, judge)
        return cls(found.means, found.whitening, float(np.quantile(found.distances(held_out), QUANTILE)), model, judge)

    def distances(self, features: Features) -> Array:
        """[n], of features [n, d] each from its nearest class. Raises ValueError for another d or what is not finite."""
        if features.ndim != 2 or features.shape[1] != self.means.shape[1]:
            raise ValueError(f"features {features.shape} are not [n, {self.means.shape[1]}]")
        if not np.isfinite(features).all():
            raise ValueError("features are not all finite")
        whitening = self.whitening.astype(np.float64)
        nearest: Array = cdist(features @ whitening, self.means @ whitening).min(axis=1)
        return nearest

    def far(self, features: Features) -> NDArray[np.bool_]:
        """[n], whether features [n, d] are beyond the threshold."""
        return self.distances(features) > self.threshold

    def save(self, path: Path) -> None:
        """Write one safetensors file, everything but the two arrays in its metadata."""
        told = {"threshold": self.threshold, "model": self.model, "judge": self.judge, "notes": dict(self.notes)}
        arrays = {"means": self.means, "whitening": np.ascontiguousarray(self.whitening)}
        write_atomic(path, save(arrays, metadata={"reference": canonical_json(told)}))

    @classmethod
    def load(cls, path: Path) -> ArtifactReference:
        """Inverse of `save`. BenchError if the file is missing or damaged."""
        try:
            with safe_open(path, framework="numpy") as file:
                return cls(file.get_tensor("means"), file.get_tensor("whitening"), **json.loads(file.metadata()["reference"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} is no reference for artifacts ({error}): restore it or build it again.") from error


def auroc(clean: Sequence[float] | Array, planted: Sequence[float] | Array) -> float | None:
    """How often a planted artifact is farther than a clean picture, ties half: 1 is perfect, ½ is chance. None without both."""
    if not len(clean) or not len(planted):
        return None
    ranks = rankdata(np.concatenate([clean, planted]))[len(clean) :]
    return float((ranks.mean() - (len(planted) + 1) / 2) / len(clean))


def per_target(outcomes: Outcomes, rules: MetricRules) -> pd.DataFrame:
    """One row per method and target as in `unlearning.per_target`: method, target; each of `RATES`, _low, _high (Wilson), _n."""
    rows: list[dict[str, Any]] = []
    for (method, target), pictures in sorted(pair(outcomes, rules).pictures.items(), key=lambda item: item[0]):
        row: dict[str, Any] = {"method": method, "target": target}
        for name, far in zip(RATES, _shares(pictures.assign(unit=0), Target.parse(target), 1, "far"), strict=True):
            low, high = wilson(round(far.value * far.n) if far.n else 0, far.n) or (np.nan, np.nan)
            row |= {name: far.value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": far.n}
        rows.append(row)
    ends = ("", "_low", "_high", "_n")
    return pd.DataFrame(rows, columns=["method", "target", *(f"{name}{end}" for name in RATES for end in ends)])


def aggregate(outcomes: Outcomes, rules: MetricRules, column: str = "far", names: Sequence[str] = RATES) -> pd.DataFrame:
    """One row per method and kind of target as in `Aggregate.table`: method, kind; each of `names`, _low, _high, _n.

    The mean of a column of the outcomes over the pictures that show the target, those that do not, and all; then over targets, with
    intervals for other noise on these targets.
    """
    paired = pair(outcomes, rules)
    rows: list[dict[str, Any]] = []
    for (method, kind), targets in paired.by_kind():
        means = [Means() for _ in names]
        for target in targets:
            for one, share in zip(means, _shares(paired.pictures[method, target], Target.parse(target), paired.units, column), strict=True):
                one.add(share)
        row: dict[str, Any] = {"method": method, "kind": kind}
        for name, one in zip(names, means, strict=True):
            found = one.with_noise(paired.design)
            low, high = (found.bounds if column == "far" else found.symmetric)(paired.design)
            row |= {name: found.value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": one.judged}
        rows.append(row)
    return pd.DataFrame(rows)


def _shares(pictures: pd.DataFrame, target: Target, units: int, column: str) -> list[Share]:
    """Means of the column, in the order of `RATES`, of pictures with a column `unit`."""
    if column not in pictures or not (there := pictures[column].notna().to_numpy()).any():
        return [Share(np.nan, np.zeros(units), np.zeros(units))] * 3
    shown = shows(pictures, target).to_numpy()
    values, unit, unedited = pictures[column].to_numpy(np.float64), pictures["unit"].to_numpy(), pictures["unedited"].to_numpy()
    return [Share.of(values[own], unit[own], units, unedited[own]) for own in (there & shown, there & ~shown, there)]

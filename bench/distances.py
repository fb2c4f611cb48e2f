"""The distances that a suite reports, of stored features from those of its true pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from bench.assets import cache
from bench.files import write_atomic
from bench.interfaces import FeatureNetwork
from bench.metrics.distance import FeatureSet, frechet_distance, kernel_distance
from bench.metrics.unlearning import shows
from bench.scoring import FEATURES, features_of
from bench.suites.suite import Preset, Suite
from bench.types import Target, content_hash

MEASURES = {"kernel": kernel_distance, "frechet": frechet_distance}
SEED_MEASURES: Mapping[str, Callable[[FeatureSet, FeatureSet], float | None]] = {
    "kernel": kernel_distance, "frechet": partial(frechet_distance, few=True),
}  # fmt: skip
"""Between one seed's pictures and the true ones: compared with other seeds alone."""
Reference = Mapping[str, tuple[pd.DataFrame, FeatureSet]]
"""By network: style and object of each picture, and their features."""


def reference_sets(suite: Suite, networks: Mapping[str, FeatureNetwork]) -> Reference:
    """The suite's true pictures as the networks see them, looked at once where they are files that stay as they are."""
    digest = suite.reference_digest() if networks else ""
    key = content_hash([suite.key, suite.version, digest, {name: network.digest for name, network in networks.items()}])
    kept = cache(suite.name) / "features" / f"{key}.parquet" if digest else None
    if kept is not None and kept.is_file():
        return _sets(pd.read_parquet(kept))
    frames = [pd.DataFrame(columns=["style", "object"])]
    for cells, pixels in suite.reference_pictures() if networks else ():
        columns = {f"{FEATURES}{name}": list(features_of(own, torch.from_numpy(pixels))) for name, own in networks.items()}
        frames.append(pd.DataFrame(cells, columns=["style", "object"]).assign(**columns))
    found = pd.concat(frames, ignore_index=True)
    if kept is not None:
        buffer = io.BytesIO()
        found.to_parquet(buffer, index=False)
        write_atomic(kept, buffer.getvalue())
    return _sets(found)


def distances_of(
    suite: Suite, preset: Preset, targets: Sequence[Target], outcomes: pd.DataFrame, reference: Reference, name: str
) -> dict[str, dict[str, Any]]:
    """Of the pictures that do not show a target, from true pictures that do not, as `Record.distances` has them.

    `outcomes` are of the target called `name`; those of the unedited model, under "", are compared for every target.
    """
    sets = _sets(outcomes)
    found: dict[str, dict[str, Any]] = {}
    for target in targets:
        if name not in ("", str(target)):
            continue
        ids = {request.id for request in suite.requests(target, preset)} if not name else set(outcomes["request"])
        values: dict[str, Any] = {}
        for one in suite.distances:
            if one.network not in sets or one.network not in reference:
                continue
            (cells, own), (true_cells, true) = sets[one.network], reference[one.network]
            out = (_left_out(cells, target) | ~cells["request"].isin(ids)).to_numpy()
            retained, rest = own.without(out), true.without(_left_out(true_cells, target).to_numpy())
            if len(retained.features):
                values[one.key] = MEASURES[one.measure](retained, rest)
                values["n"] = len(retained.features)
            if values.get(one.key) is not None:
                values.setdefault("seeds", {})[one.key] = _by_seed(retained, cells["seed"].to_numpy()[~out], rest, one.measure)
        if values:
            found[str(target)] = values
    return found


def _by_seed(retained: FeatureSet, seeds: NDArray[np.generic], reference: FeatureSet, measure: str) -> dict[str, float]:
    """By seed, of its pictures alone; of as many each: seeds that lack some are left out."""
    names, counts = np.unique(seeds, return_counts=True)
    whole = [seed for seed, n in zip(names, counts, strict=True) if n == counts.max()]
    found = {str(seed): SEED_MEASURES[measure](retained.where(seeds == seed), reference) for seed in whole}
    return {seed: value for seed, value in found.items() if value is not None}


def _sets(frame: pd.DataFrame) -> Reference:
    """By network, the pictures that have its features."""
    found = {}
    for column in (name for name in frame if name.startswith(FEATURES)):
        seen = frame.dropna(subset=[column])
        if len(seen):
            cells = seen[[name for name in ("style", "object", "seed", "request") if name in seen]]
            found[column.removeprefix(FEATURES)] = cells, FeatureSet(np.stack(seen[column].tolist()))
    return found


def _left_out(cells: pd.DataFrame, target: Target) -> pd.Series:
    """Pictures that show the target, or no style."""
    return shows(cells, target) | (cells["style"] == "")

"""From a configuration to the latents, thresholds and factors of an edit, for one or several concepts and hook points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Assets, BenchError, Concept, FitContext, MethodConfig, sha256_file
from methods.sae import calibration, statistics
from methods.sae.autoencoder import folder_of, load_sae, sae_digest
from methods.sae.features import Features, by_percentile, published_features, scores, top, union


class SAEMethodConfig(MethodConfig):
    """What methods that act on SAE latents share."""

    features: int = Field(2, ge=1, description="Latents chosen at every step, those of highest score (or recall, if calibrated).")
    percentile: float | None = Field(
        None, gt=0, lt=100, description="Instead of a number: all latents with a score above this percentile. The paper's styles: 99.999."
    )
    detection: Literal["saeuron-code", "calibrated"] = Field(
        "calibrated",
        description="Where a latent counts as firing: above its mean over concepts (public code), or above a calibrated threshold.",
    )
    alpha: float = Field(0.01, gt=0, lt=1, description="Calibrated: share of unrelated pictures in which anything may fire at any step.")
    hookpoints: tuple[str, ...] = Field((), description="UNet blocks to act at. Default: those of the suite for the concept's kind.")
    sae: Path | None = Field(None, description="Folder of SAEs, unet.BLOCK each. Default: the suite's.")


@dataclass(frozen=True)
class Gates:
    """What an edit is made of."""

    tables: Mapping[str, Any]
    """Fields of `methods.sae.edits.LatentEdit`."""
    factors: Tensor
    """float32 [H, T, F], for steering."""
    notes: Mapping[str, Any]


def places(config: SAEMethodConfig, assets: Assets, concepts: Sequence[Concept]) -> dict[str, tuple[Path, list[Concept]]]:
    """Hook point → (folder of its SAE, the concepts removed there). BenchError if there is none for a concept."""
    saes = config.sae or assets.sae_folder
    if saes is None:
        raise BenchError("This suite has no SAEs: train them (python -m bench train-sae) and name their folder (sae=…).")
    found: dict[str, tuple[Path, list[Concept]]] = {}
    for concept in concepts:
        names = config.hookpoints or assets.hookpoints.get(concept.kind, ())
        if not names:
            raise BenchError(f"This suite names no hook point for concepts of kind {concept.kind}: find one (python -m bench locate).")
        for name in names:
            found.setdefault(name, (folder_of(saes, name), []))[1].append(concept)
    return found


def digests(config: SAEMethodConfig, assets: Assets, concepts: Sequence[Concept]) -> dict[str, str]:
    """Of every file that `gates` reads."""
    found = {}
    for name, (folder, _) in places(config, assets, concepts).items():
        found[name] = sae_digest(folder)
        for file in (statistics.FILE, calibration.FILE):
            if (folder / file).is_file():
                found[f"{name}/{file}"] = sha256_file(folder / file)
    return found


def gates(config: SAEMethodConfig, context: FitContext, concepts: Sequence[Concept], multiplier: float) -> Gates:
    """Choose latents for all concepts at all of their hook points."""
    where = places(config, context.assets, concepts)
    features: list[Features] = []
    known: list[str] = []
    grids: list[Tensor] = []
    for folder, own in where.values():
        sae = load_sae(folder, context.model.device)
        known.append(sae.digest)
        found = statistics.load_statistics(folder, sae.digest, context.model.digest)
        grids.append(found.timesteps)
        if config.detection == "calibrated":
            features.append(union(_calibrated(config, folder, found, own, multiplier)))
        else:
            features.append(union([_published(config, found, concept, multiplier) for concept in own]))
    if any(not torch.equal(grid, grids[0]) for grid in grids):
        raise BenchError("The statistics of these hook points are of different steps: gather them together (python -m bench train-sae).")
    width = max(table.latents.shape[1] for table in features)
    latents, thresholds, factors = (
        torch.stack([torch.nn.functional.pad(table[k], (0, width - table[k].shape[1]), value=empty) for table in features])
        for k, empty in ((0, 0), (1, torch.inf), (2, 1.0))
    )
    chosen = {
        name: sorted({int(i) for i in table.latents[table.thresholds.isfinite()]}) for name, table in zip(where, features, strict=True)
    }
    tables = {
        "hookpoints": tuple(where), "saes": tuple(str(folder) for folder, _ in where.values()), "digests": tuple(known),
        "timesteps": grids[0], "latents": latents, "thresholds": thresholds,
    }  # fmt: skip
    return Gates(tables, factors, {"latents": chosen})


def _published(config: SAEMethodConfig, found: statistics.Statistics, concept: Concept, multiplier: float) -> Features:
    index = found.index(str(concept))
    score = scores(found, index)
    chosen = by_percentile(score, config.percentile) if config.percentile is not None else top(score, config.features)
    return published_features(found, index, chosen, multiplier)


def _calibrated(
    config: SAEMethodConfig, folder: Path, found: statistics.Statistics, concepts: Sequence[Concept], multiplier: float
) -> list[Features]:
    if config.percentile is not None:
        raise BenchError("percentile= chooses by score, calibrated detection by recall: set features=, or detection=saeuron-code.")
    detectors = calibration.load_detectors(folder, found.sae, found.model)
    alpha = config.alpha / len(concepts)  # any of them may fire: a union bound keeps the whole below alpha
    indices = [found.index(str(concept)) for concept in concepts]
    return [detectors.features(i, config.features, alpha, found.means[i], multiplier) for i in indices]

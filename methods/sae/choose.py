"""From a configuration to the latents, thresholds, factors and gates of an edit, for one or several concepts and hook points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import pad

from bench.api import Assets, BenchError, Concept, FitContext, Kind, MethodConfig, sha256_file
from methods.sae import calibration, statistics
from methods.sae.autoencoder import check_block, folder_of, load_sae, sae_digest
from methods.sae.features import Features, by_percentile, published_features, scores, top, union
from methods.sae.gather import statistics_of


class SAEMethodConfig(MethodConfig):
    """What methods that act on SAE latents share."""

    features: int = Field(2, ge=1, description="Latents chosen at every step, those of highest score.")
    percentile: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="Instead of a number: all latents with a score above this percentile. The public code's styles: 99.999.",
    )
    detection: Literal["calibrated", "saeuron-code"] = Field(
        "calibrated", description="calibrated: nothing is edited before a detector of known false-positive rate has fired in the picture. "
        "saeuron-code: always where a latent exceeds its mean over concepts, as in the public code."
    )  # fmt: skip
    alpha: float = Field(0.01, gt=0, lt=1, description="Calibrated: share of unrelated pictures in which the detector may ever fire.")
    gate_features: int = Field(2, ge=1, description="Calibrated: the detector's latents at every step, those of highest recall.")
    hookpoints: tuple[str, ...] = Field(
        (), description="UNet blocks to act at, joined by +. Default: those of the suite for the concept's kind."
    )
    sae: Path | None = Field(None, description="Folder of SAEs, unet.BLOCK each. Default: the suite's.")

    @field_validator("hookpoints", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split("+")) if isinstance(value, str) else value


@dataclass(frozen=True)
class Choice:
    """What an edit is made of."""

    tables: Mapping[str, Any]
    """Fields of `methods.sae.bank.LatentEdit`."""
    factors: Tensor
    """float32 [H, T, F], for steering."""
    notes: Mapping[str, Any]


def places(config: SAEMethodConfig, assets: Assets, concepts: Sequence[Concept]) -> dict[str, tuple[Path, list[Concept]]]:
    """Hook point → (folder of its SAE, the concepts removed there). BenchError if there is none for a concept."""
    saes = config.sae or assets.sae_folder
    if saes is None:
        raise BenchError("This suite has no SAEs: train them (python -m bench train-sae) and name their folder (sae=…).")
    if assets.hint and not config.sae and not saes.is_dir():
        raise BenchError(f"The SAEs are missing: {saes}. {assets.hint}")
    found: dict[str, tuple[Path, list[Concept]]] = {}
    for concept in concepts:
        names = config.hookpoints or assets.hookpoints.get(concept.kind, ())
        if not names:
            raise BenchError(f"This suite names no hook point for concepts of kind {concept.kind}: find one (python -m bench locate).")
        for name in names:
            found.setdefault(name, (folder_of(saes, name), []))[1].append(concept)
    return found


def digests(config: SAEMethodConfig, assets: Assets, concepts: Sequence[Concept]) -> dict[str, str]:
    """Of every file that `choose` reads."""
    found = {}
    for name, (folder, own) in places(config, assets, concepts).items():
        found[name] = sae_digest(folder)
        for file in (statistics.FILE, calibration.FILE):
            if (folder / file).is_file():
                found[f"{name}/{file}"] = sha256_file(folder / file)
        if not (folder / statistics.FILE).is_file():
            found |= {f"{name}/{kind}": assets.statistics[kind] for kind in kinds_of(own) if kind in assets.statistics}
    return found


def kinds_of(concepts: Sequence[Concept]) -> list[Kind]:
    """Each once, in the order of first use."""
    return list(dict.fromkeys(concept.kind for concept in concepts))


def prepare(config: SAEMethodConfig, context: FitContext, concepts: Sequence[Concept]) -> None:
    """Gather the statistics of SAEs that come without."""
    for name, (folder, own) in places(config, context.assets, concepts).items():
        if not (folder / statistics.FILE).is_file():
            statistics_of(context, folder, name, load_sae(folder, context.model.device), kinds_of(own))


def choose(config: SAEMethodConfig, context: FitContext, concepts: Sequence[Concept], multiplier: float) -> Choice:
    """Latents, thresholds and gates for all concepts at all of their hook points."""
    where = places(config, context.assets, concepts)
    # Any concept's detector may fire at any of its hook points: a union bound keeps the whole below alpha.
    shares = sum(len(own) for _, own in where.values())
    features: list[Features] = []
    gates: list[tuple[Tensor, Tensor]] = []
    known: list[statistics.Statistics] = []
    for name, (folder, own) in where.items():
        sae = load_sae(folder, context.model.device)
        check_block(context.model.unet, name, sae.config)
        found = statistics_of(context, folder, name, sae, kinds_of(own))
        known.append(found)
        indices = [found.index(str(concept)) for concept in own]
        features.append(union([_features(config, found, index, multiplier) for index in indices]))
        gates.append(_gate(config, folder, found, indices, shares))
    if config.detection == "calibrated" and context.steps > len(known[0].timesteps):
        raise BenchError(
            f"The detectors look at {len(known[0].timesteps)} steps; at {context.steps} they would fire more often than their rate says:"
            " take fewer --steps, detection=saeuron-code, or calibrate for so many (python -m bench train-sae --steps)."
        )
    if any(not torch.equal(one.timesteps, known[0].timesteps) for one in known):
        raise BenchError("The statistics of these hook points are of different steps: gather them together (python -m bench train-sae).")
    tables = {
        "hookpoints": tuple(where), "saes": tuple(str(folder) for folder, _ in where.values()), "digests": tuple(one.sae for one in known),
        "timesteps": known[0].timesteps, "latents": _stack([one.latents for one in features], 0),
        "thresholds": _stack([one.thresholds for one in features], torch.inf),
        "gate_latents": _stack([latents for latents, _ in gates], 0),
        "gate_thresholds": _stack([thresholds for _, thresholds in gates], torch.inf),
    }  # fmt: skip
    chosen = {name: sorted({int(i) for i in one.latents[one.thresholds.isfinite()]}) for name, one in zip(where, features, strict=True)}
    return Choice(tables, _stack([one.factors for one in features], 1.0), {"latents": chosen})


def _features(config: SAEMethodConfig, found: statistics.Statistics, index: int, multiplier: float) -> Features:
    score = scores(found, index)
    if config.features > score.shape[-1]:
        raise BenchError(f"features={config.features}, but the SAE has {score.shape[-1]} latents: choose fewer.")
    chosen = by_percentile(score, config.percentile) if config.percentile is not None else top(score, config.features)
    return published_features(found, index, chosen, multiplier)


def _gate(
    config: SAEMethodConfig, folder: Path, found: statistics.Statistics, indices: Sequence[int], shares: int
) -> tuple[Tensor, Tensor]:
    """Latents and thresholds [T, G] of the concepts' detectors side by side; none where the gate is always open."""
    if config.detection == "saeuron-code":
        empty = torch.zeros(len(found.timesteps), 0)
        return empty.long(), empty
    detectors = calibration.load_detectors(folder, found.sae, found.model)
    if not torch.equal(detectors.timesteps, found.timesteps):
        raise BenchError(
            f"The detectors in {folder} are of {len(detectors.timesteps)} steps, its statistics of {len(found.timesteps)}:"
            " calibrate again (python -m bench train-sae --part calibration --out FOLDER)."
        )
    parts = [detectors.gate(index, config.gate_features, config.alpha, shares) for index in indices]
    return torch.cat([latents for latents, _ in parts], 1), torch.cat([thresholds for _, thresholds in parts], 1)


def _stack(tables: Sequence[Tensor], empty: float) -> Tensor:
    """Hook points' [T, F] → [H, T, F], padded."""
    width = max(table.shape[1] for table in tables)
    return torch.stack([pad(table, (0, width - table.shape[1]), value=empty) for table in tables])

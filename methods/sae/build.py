"""Make what SAE methods need for a model: train the SAEs, gather statistics, calibrate detectors. Each part continues what is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.api import BenchError, Concept, DDIMSchedule, DiffusionModel, Erasure, GenerationRequest, Probe, Row, sample, write_atomic
from methods.sae.autoencoder import SparseAutoencoder, check_block, folder_of, load_sae
from methods.sae.calibration import MaximaCollector, candidates_of, make_detectors
from methods.sae.statistics import MeanCollector, load_statistics, membership_of
from methods.sae.training import Curves, SAERecipe, SAETraining

PARTS = ("train", "statistics", "calibration")
Requests = Callable[[str, int, int], Sequence[GenerationRequest]]
"""(split, count, start) → requests."""


class FVUMeter(Probe):
    """Fraction of variance unexplained on fresh pictures, per half of guidance: [unconditional, conditional]."""

    def __init__(self, sae: SparseAutoencoder, hookpoint: str) -> None:
        self.hookpoints, self.sae = (hookpoint,), sae
        zeros = sae.b_dec.new_zeros(2, dtype=torch.float64)
        self.count, self.squares, self.errors = zeros, zeros.clone(), zeros.clone()
        self.sums = sae.b_dec.new_zeros(2, sae.config.d_in, dtype=torch.float64)

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`."""
        x = self.sae.tokens(x_in, x_out).float()
        error = self.sae.decode(self.sae.encode(x)) - x
        weight = torch.stack([(row >= 0) & (role == half) for half in (0, 1)]).double()  # [2, S]
        self.count += weight.sum(1) * x.shape[1]
        self.sums += weight @ x.sum(1).double()
        self.squares += weight @ x.square().sum((1, 2)).double()
        self.errors += weight @ error.square().sum((1, 2)).double()

    @property
    def fvu(self) -> list[float | None]:
        """Of each half; None of one that no picture has, as the unconditional one without guidance."""
        variance = self.squares - self.sums.square().sum(1) / self.count
        return [float(value) if count else None for value, count in zip(self.errors / variance, self.count.tolist(), strict=True)]


@dataclass(frozen=True)
class SAEBuild:
    """SAEs of one model below `folder`, a folder `unet.<hook point>` each.

    `concepts` maps each hook point to the concepts whose statistics are gathered there.
    """

    model: DiffusionModel
    concepts: Mapping[str, Sequence[Concept]]
    requests: Requests
    recipe: SAERecipe
    folder: Path
    dtype: torch.dtype
    slots: int
    steps: int
    pictures: Mapping[str, int]
    """How many pictures per split: statistics, select, calibrate, verify."""
    say: Callable[[str], None]

    def run(self, parts: Sequence[str]) -> None:
        """Make the named parts in their order."""
        for part in PARTS:
            if part in parts:
                getattr(self, part)()

    def train(self) -> None:
        """Train all hook points together; write the SAEs and how they were made and how well they reconstruct."""

        def requests(count: int, start: int) -> Sequence[GenerationRequest]:
            return self.requests("train", count, start)

        training = SAETraining(
            self.model, tuple(self.concepts), self.recipe, requests, self.folder / "work", self.dtype, self.slots, self.say
        )
        for name, trainer in training.run().items():
            trainer.sae.save(folder_of(self.folder, name))
            self._note(name, {"recipe": self.recipe.model_dump(), "model": self.model.digest, "curves": vars(trainer.curves)})
            _write_curves(trainer.curves, folder_of(self.folder, name) / "curves.csv")

    def statistics(self) -> None:
        """Mean latents per concept and step, and the FVU on pictures that were not trained on."""
        means, meters = {}, {}
        requests = self._split("statistics")
        for name, concepts in self.concepts.items():
            sae = self._sae(name)
            membership = membership_of(requests, list(map(str, concepts))).to(self.model.device)
            means[name], meters[name] = MeanCollector(sae, name, membership, self.steps), FVUMeter(sae, name)
        self._sample(requests, [*means.values(), *meters.values()], "statistics")
        timesteps = DDIMSchedule.of(self.model.scheduler, self.steps).timesteps
        for name, concepts in self.concepts.items():
            found = means[name].statistics(list(map(str, concepts)), timesteps, self.model.digest)
            found.save(folder_of(self.folder, name))
            fvu = dict(zip(("unconditional", "conditional"), meters[name].fvu, strict=True))
            halves = ", ".join(f"{value:.3f} {half}" for half, value in sorted(fvu.items()) if value is not None)
            self.say(f"{name}: FVU {halves}, on {len(requests)} fresh pictures")
            self._note(name, {"fvu": {**fvu, "pictures": len(requests)}})

    def calibration(self) -> None:
        """Detectors: latents and scales from one split, thresholds from the second, checked on the third."""
        stats = {name: load_statistics(folder_of(self.folder, name), self._sae(name).digest, self.model.digest) for name in self.concepts}
        for found in stats.values():
            if len(found.timesteps) != self.steps:
                raise BenchError(
                    f"The statistics are of {len(found.timesteps)} steps, this command has {self.steps}: gather them again"
                    " (--part statistics,calibration) or give --steps."
                )
        candidates = {name: candidates_of(own) for name, own in stats.items()}
        splits: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.concepts}
        for split in ("select", "calibrate", "verify"):
            requests = self._split(split)
            probes = {name: MaximaCollector(self._sae(name), name, candidates[name], len(requests)) for name in self.concepts}
            self._sample(requests, list(probes.values()), split)
            for name, probe in probes.items():
                splits[name].append((probe.maxima, membership_of(requests, stats[name].concepts) > 0))
        for name, own in splits.items():
            make_detectors(stats[name], candidates[name], own).save(folder_of(self.folder, name))

    def _sae(self, name: str) -> SparseAutoencoder:
        sae = load_sae(folder_of(self.folder, name), self.model.device)
        check_block(self.model.unet, name, sae.config)
        return sae

    def _split(self, split: str) -> Sequence[GenerationRequest]:
        return self.requests(split, self.pictures[split], 0)

    def _sample(self, requests: Sequence[GenerationRequest], probes: Sequence[Probe], what: str) -> None:
        erasure, done = Erasure(), 0

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            if done % 160 < pictures:
                self.say(f"{what}: {done} of {len(requests)} pictures")

        sample(self.model, [Row(request, erasure) for request in requests], self.dtype, self.slots, advance, probes)

    def _note(self, name: str, note: Mapping[str, object]) -> None:
        """Add to `training.json` beside the SAE: how it was made."""
        path = folder_of(self.folder, name) / "training.json"
        notes = json.loads(path.read_text()) if path.exists() else {}
        write_atomic(path, (json.dumps({**notes, **note}, indent=1, sort_keys=True) + "\n").encode())


def _write_curves(curves: Curves, path: Path) -> None:
    """The training's curves as a table."""
    lines = ["step,fvu,l0,dead", *(",".join(map(str, row)) for row in zip(*vars(curves).values(), strict=True))]
    write_atomic(path, ("\n".join(lines) + "\n").encode())

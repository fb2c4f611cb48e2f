"""Execute bundles on one device: fit what they need, sample, decode, score, write the units."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import pandas as pd
import torch

from bench.config import Images
from bench.cost import FIT_COST, PeakMemory
from bench.diffusion.model import DiffusionModel
from bench.diffusion.sampler import Row, sample
from bench.erasure import load_erasure, save_erasure, stored_bytes
from bench.errors import BenchError
from bench.interfaces import Erasure, FitContext
from bench.plan import Fit, Unit
from bench.registry import method
from bench.scoring import Scorer, kept
from bench.store import Store
from bench.suites.suite import Suite


@dataclass(frozen=True)
class Worker:
    """Holds all that is loaded once: model, judges, the run's folder and its numerics."""

    suite: Suite
    store: Store
    model: DiffusionModel
    scorer: Scorer
    dtype: torch.dtype
    slots: int
    steps: int
    images: Images
    fit_seed: int
    say: Callable[[str], None]
    advance: Callable[[int], None]
    failed: dict[str, str] = field(default_factory=dict)
    """Fits that could not be made, and why."""

    def done(self, unit: Unit) -> bool:
        """Whether the unit is stored whole, with as many pictures as the policy keeps."""
        frame = self.store.read_unit(unit.id)
        return frame is not None and int(frame["png"].notna().sum()) >= sum(kept(self.images, unit.requests, unit.fit.target))

    def execute(self, bundle: Sequence[Unit]) -> None:
        """Write every unit of the bundle but those whose fit fails. Units with changed weights must be of one erasure."""
        erasures = {unit.fit.id: erasure for unit in bundle if (erasure := self._try_erasure(unit.fit)) is not None}
        units = [unit for unit in bundle if unit.fit.id in erasures]
        if not units:
            return
        self.say(", ".join(dict.fromkeys(unit.fit.spec.label for unit in units)))
        rows = [Row(request, erasures[unit.fit.id]) for unit in units for request in unit.requests]
        with ExitStack() as stack:
            self.model.sampling_unet(self.dtype)  # the copy must exist before weights are swapped, to be swapped too
            for erasure in erasures.values():
                if erasure.weights is not None:
                    stack.enter_context(self.model.weights(erasure.weights.values))
            sampled = sample(self.model, rows, self.dtype, self.slots, self.advance)
            pixels = self.model.decode(sampled.latents)
        start = 0
        for unit in units:
            place = slice(start, start + len(unit.requests))
            start = place.stop
            outcomes = self.scorer.outcomes(unit.requests, pixels[place], kept(self.images, unit.requests, unit.fit.target))
            edited = sampled.first_edit[place].tolist() if erasures[unit.fit.id].activations else None
            self.store.write_unit(unit.id, outcomes.assign(first_edit=pd.array(edited or [None] * len(outcomes), dtype="Int64")))

    def _try_erasure(self, fit: Fit) -> Erasure | None:
        """A method that cannot remove one target must not end the run: the pair becomes a hole with its reason."""
        if fit.id in self.failed:
            return None
        try:
            return self.erasure(fit)
        except BenchError as error:
            self.failed[fit.id] = str(error)
            return None

    def erasure(self, fit: Fit) -> Erasure:
        """What this run fitted before; fitted now if it is not there, is damaged or is of files that have moved."""
        if self.store.read_json(f"cost/fit-{fit.id}.json", FIT_COST) is not None:
            with suppress(BenchError):
                return self._load(fit)
        self._fit(fit)
        return self._load(fit)

    def _load(self, fit: Fit) -> Erasure:
        return load_erasure(self.store.folder / "erasures" / fit.id, method(fit.spec.name).parts, self.model.device)

    def _fit(self, fit: Fit) -> None:
        """Fit and save one erasure and what the fit cost."""
        kind = method(fit.spec.name)
        concepts = fit.target.concepts if fit.target else ()
        name = f"{fit.spec.label} on {fit.target}"

        def progress(share: float, text: str) -> None:
            self.say(f"{name}: {text} {share:.0%}")

        if fit.target:
            self.say(f"{name}: fitting")
        context = FitContext(
            self.model, self.suite.texts, self.fit_seed, self.steps, self.suite.guidance_scale, self.dtype, self.suite.assets, progress
        )
        with PeakMemory(self.model.device) as memory:
            began = time.perf_counter()
            erasure = kind(kind.Config.model_validate(dict(fit.spec.config_for(fit.target)))).fit(context, concepts)
            seconds = time.perf_counter() - began
        folder = self.store.folder / "erasures" / fit.id
        save_erasure(erasure, folder)
        self.store.write_json(
            f"cost/fit-{fit.id}.json",
            dict(zip(FIT_COST, (seconds, memory.peak_mb, stored_bytes(folder) / 1e6), strict=True)),
        )

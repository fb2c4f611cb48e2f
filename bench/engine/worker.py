"""Execute bundles on one device: fit what they need, sample, decode, score, write the units."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from bench.config import Images
from bench.cost import PeakMemory
from bench.diffusion.model import DiffusionModel
from bench.diffusion.sampler import Row, sample
from bench.erasure import load_erasure, save_erasure, stored_bytes
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

    def execute(self, bundle: Sequence[Unit]) -> None:
        """Write every unit of the bundle. Units with changed weights must be of one erasure."""
        erasures = {unit.fit.id: self.erasure(unit.fit) for unit in bundle}
        rows = [Row(request, erasures[unit.fit.id]) for unit in bundle for request in unit.requests]
        with ExitStack() as stack:
            self.model.sampling_unet(self.dtype)  # the copy must exist before weights are swapped, to be swapped too
            for erasure in erasures.values():
                if erasure.weights is not None:
                    stack.enter_context(self.model.weights(erasure.weights.values))
            latents = sample(self.model, rows, self.dtype, self.slots, self.advance)
            pixels = self.model.decode(latents)
        start = 0
        for unit in bundle:
            own = pixels[start : start + len(unit.requests)]
            start += len(unit.requests)
            self.store.write_unit(unit.id, self.scorer.outcomes(unit.requests, own, kept(self.images, unit.requests, unit.fit.target)))

    def erasure(self, fit: Fit) -> Erasure:
        """Fit it, or read it back where this run fitted it before."""
        kind = method(fit.spec.name)
        folder = self.store.folder / "erasures" / fit.id
        if not (folder / "erasure.json").exists() or self.store.read_json(f"cost/fit-{fit.id}.json") is None:
            self.fit(fit)
        return load_erasure(folder, kind.parts, self.model.device)

    def fit(self, fit: Fit) -> None:
        """Fit and save one erasure and what the fit cost."""
        kind = method(fit.spec.name)
        concepts = fit.target.concepts if fit.target else ()
        name = f"{fit.spec.label} on {fit.target}"

        def progress(share: float, text: str) -> None:
            self.say(f"{name}: {text} {share:.0%}")

        if fit.target:
            self.say(f"{name}: fitting")
        context = FitContext(self.model, self.suite.texts, self.fit_seed, self.steps, self.suite.guidance_scale, self.dtype, progress)
        with PeakMemory(self.model.device) as memory:
            began = time.perf_counter()
            erasure = kind(kind.Config.model_validate(dict(fit.spec.config))).fit(context, concepts)
            seconds = time.perf_counter() - began
        folder = self.store.folder / "erasures" / fit.id
        save_erasure(erasure, folder)
        self.store.write_json(
            f"cost/fit-{fit.id}.json",
            {"method": fit.spec.label, "target": str(fit.target or ""), "fit_seconds": seconds, "peak_memory_mb": memory.peak_mb,
             "stored_mb": stored_bytes(folder) / 1e6},
        )  # fmt: skip

"""Sample the finished model on the whole grid and say how often the evaluation judge sees what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.diffusion.loading import load_model
from bench.diffusion.numerics import describe, pick_dtype
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler, sample
from bench.interfaces import Erasure
from bench.metrics.uncertainty import wilson
from bench.metrics.unlearning import accuracy
from bench.scoring import Scorer
from bench.suites.minicanvas import MiniCanvas
from bench.types import KINDS, Target

SEEDS, SLOTS = 10, 32
FLOORS = {"style": 0.99, "object": 0.97}
CONCEPT_FLOOR = 0.90


def check(weights: Path, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy per kind and concept with Wilson's 95 % intervals, at the suite's default sampling; `passed` for the floors."""
    suite = MiniCanvas(weights)
    model, scorer = load_model(suite.model_folder(), device), Scorer.load(suite, device)
    dtype = pick_dtype("auto", model, SLOTS)
    preset = replace(suite.presets["full"], seeds=SEEDS)
    requests = suite.base_requests([Target((suite.concepts[0],))], preset)
    erasure, seen = Erasure(), 0

    def advance(pictures: int) -> None:
        nonlocal seen
        seen += pictures
        if seen % 240 < pictures:
            say(f"check: {seen} of {len(requests)} pictures")

    pixels = model.decode(sample(model, [Row(request, erasure) for request in requests], dtype, SLOTS, advance).latents)
    none = [False] * len(requests)
    outcomes = scorer.outcomes(requests, scorer.judge(pixels, none, [request.prompt for request in requests]), none)
    found: dict[str, Any] = {"pictures": len(requests), "numerics": describe(Sampler(model, dtype, SLOTS))}
    passed = True
    for kind in KINDS:
        hits = int((outcomes[kind] == outcomes[f"{kind}_pred"]).sum())
        share, interval = hits / len(requests), wilson(hits, len(requests)) or (0.0, 1.0)
        table = accuracy(outcomes, kind)
        found[kind] = {"accuracy": share, "interval": interval, "concepts": dict(zip(table["concept"], table["accuracy"], strict=True))}
        passed &= share >= FLOORS[kind] and table["accuracy"].min() >= CONCEPT_FLOOR
        say(f"check: {kind} {share:.4f} [{interval[0]:.4f}, {interval[1]:.4f}], lowest {table['accuracy'].min():.3f}")
    return {**found, "passed": bool(passed)}

"""Outcomes on three styles and three objects, with a share of random verdicts."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from bench.metrics.unlearning import CELL
from bench.types import MetricRules, Target

WITH, WITHOUT = MetricRules(cra_includes_target=True), MetricRules(cra_includes_target=False)
STYLES, OBJECTS = ("frost", "neon", "pop"), ("cat", "dog", "fish")
NEON = Target.parse("style:neon")
TARGETS = ("style:neon", "style:pop", "object:cat")


def grid(seeds: int) -> pd.DataFrame:
    """Every cell once, judged as what it was asked for."""
    cells = pd.DataFrame(itertools.product(STYLES, OBJECTS, range(seeds)), columns=CELL)
    return cells.assign(style_pred=cells["style"], object_pred=cells["object"])


def noisy(seeds: int, rng: int, error: float = 0.3) -> pd.DataFrame:
    """The grid with a share of random verdicts, among them "no object"."""
    draw, frame = np.random.default_rng(rng), grid(seeds)
    for kind, names in (("style", STYLES), ("object", (*OBJECTS, "no object"))):
        wrong = draw.random(len(frame)) < error
        frame[f"{kind}_pred"] = np.where(wrong, draw.choice(names, len(frame)), frame[kind])
    return frame


def run(seeds: int, methods: int = 2, targets: tuple[str, ...] = TARGETS) -> dict[str, pd.DataFrame]:
    """Outcomes of `none` and of noisy methods on some targets."""
    found = {"none": noisy(seeds, 0, 0.1).assign(target="")}
    for m in range(methods):
        frames = [noisy(seeds, 10 * m + t + 1).assign(target=target) for t, target in enumerate(targets)]
        found[f"method {m}"] = pd.concat(frames, ignore_index=True)
    return found

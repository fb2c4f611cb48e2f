"""Timing by turns: absolute times drift with the machine, ratios of neighbours in time hardly do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.diffusion.numerics import synchronise

Case = Callable[[], object]
CALLS = 4
"""Turns per pair where a case is a single UNet call, which is short beside what else a machine does."""


def alternate(cases: Mapping[str, Case], pairs: int, device: torch.device, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each case, `pairs` times in turn, after once each unmeasured."""
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(pairs):
        for name, case in cases.items():
            say(f"{name}, {turn + 1} of {pairs}")
            synchronise(device)
            began = time.perf_counter()
            case()
            synchronise(device)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Ours ÷ theirs, turn by turn: median and range."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "pairs": len(ratios)}

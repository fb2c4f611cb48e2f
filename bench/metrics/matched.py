"""What two families of variants keep at the same unlearning accuracy: a method that erases less also damages less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.metrics import resampling
from bench.metrics.resampling import Array

RETAINED = ("ira", "cra")


def at_matched_ua(
    draws: Mapping[tuple[str, str], Array], first: Sequence[str], second: Sequence[str], kind: str, ua: float | None = None
) -> dict[str, Any] | None:
    """IRA and CRA of two families, interpolated linearly along each family's points at the same UA, and their paired difference.

    `draws` as `bench.metrics.unlearning.draws` gives them: every draw resamples both families jointly. `ua`, by default the
    highest that both families reach. Keys: kind, ua; for each of ira and cra: <m>_first, <m>_second, and <m>_difference (first
    minus second) with _low and _high (95 %). None if the families have no UA in common.
    """
    curves = [np.stack([draws[label, kind] for label in family]) for family in (first, second)]
    lows, highs = zip(*((curve[:, 0, 0].min(), curve[:, 0, 0].max()) for curve in curves), strict=True)
    level = min(highs) if ua is None else ua
    if not max(lows) <= level <= min(highs):
        return None
    found: dict[str, Any] = {"kind": kind, "ua": float(level)}
    for place, name in enumerate(RETAINED, start=1):
        ours, theirs = (_at(curve[:, 0], curve[:, place], float(level)) for curve in curves)
        found |= {f"{name}_first": float(ours[0]), f"{name}_second": float(theirs[0])}
        keys = (f"{name}_difference", f"{name}_low", f"{name}_high")
        found |= dict(zip(keys, resampling.interval(ours - theirs), strict=True))
    return found


def _at(ua: Array, values: Array, level: float) -> Array:
    """Values [draws] at the level, from points (ua, values) [variants, draws]; beyond a draw's points, that of the nearest."""
    order = np.argsort(ua, axis=0, kind="stable")
    x, y = np.take_along_axis(ua, order, 0), np.take_along_axis(values, order, 0)
    return np.array([np.interp(level, x[:, d], y[:, d]) for d in range(x.shape[1])])

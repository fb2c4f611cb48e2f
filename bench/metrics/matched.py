"""What two families of variants keep at the same unlearning accuracy: a method that erases less also damages less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.metrics import resampling
from bench.metrics.resampling import Array

RETAINED = ("ira", "cra")


def at_matched_ua(
    draws: Mapping[tuple[str, str], Array], first: Sequence[str], second: Sequence[str], kind: str, ua: float
) -> dict[str, Any] | None:
    """What each family keeps at best among its settings that erase at least `ua`, and the paired difference.

    `draws` as `bench.metrics.unlearning.draws` gives them: every draw resamples both families jointly and chooses anew. Keys:
    kind, ua; for each of ira and cra: <m>_first, <m>_second, <m>_difference (first minus second) with _low and _high (95 %);
    missed: the share of draws in which a family does not reach `ua`, left out of the intervals. None if the data do not.
    """
    curves = [np.stack([draws[label, kind] for label in family]) for family in (first, second)]
    best = [np.max(np.where(curve[:, :1] >= ua, curve[:, 1:], -np.inf), axis=0) for curve in curves]
    ours, theirs = (np.where(np.isfinite(values), values, np.nan) for values in best)
    if np.isnan(ours[0, 0] + theirs[0, 0]):
        return None
    found: dict[str, Any] = {"kind": kind, "ua": ua, "missed": float(np.isnan(ours[0] + theirs[0]).mean())}
    for place, name in enumerate(RETAINED):
        found |= {f"{name}_first": float(ours[place, 0]), f"{name}_second": float(theirs[place, 0])}
        keys = (f"{name}_difference", f"{name}_low", f"{name}_high")
        found |= dict(zip(keys, resampling.interval(ours[place] - theirs[place]), strict=True))
    return found

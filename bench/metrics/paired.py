"""Two methods against each other, with the noise that they share taken out: every draw resamples both jointly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.metrics import resampling
from bench.metrics.resampling import Array
from bench.metrics.unlearning import METRICS, NONE, ranking_scores

RETAINED = ("ira", "cra")


def differences(draws: Mapping[tuple[str, str], Array], first: str, second: str, kind: str) -> list[dict[str, Any]]:
    """UA, IRA, CRA and the score of two methods on the targets of a kind, and first minus second.

    `draws` as `bench.metrics.unlearning.draws` gives them, with "none". Keys of a row: kind, metric, first, second, difference,
    low, high (95 %). Metrics that one of them has not are left out.
    """
    base = draws[NONE, kind]

    def values(method: str) -> Array:
        ua, ira, cra = draws[method, kind]
        return np.stack([ua, ira, cra, ranking_scores(ua, ira, cra, base[1], base[2])])

    named = zip((*METRICS, "score"), values(first), values(second), strict=True)
    return [row for name, ours, theirs in named if (row := _difference(kind, name, ours, theirs))]


def at_matched_ua(
    draws: Mapping[tuple[str, str], Array], first: Sequence[str], second: Sequence[str], kind: str, ua: float
) -> list[dict[str, Any]]:
    """What each family keeps with the one of its settings that keeps most of those that erase at least `ua`, and the paired difference.

    A method that erases less also damages less: families compare where they erase alike. `draws` as
    `bench.metrics.unlearning.draws` gives them; every draw chooses anew. Keys of a row, one for IRA and one for CRA: kind, ua,
    metric, first, second, difference, low, high (95 %), missed: the share of draws in which a family does not reach `ua`, left out
    of the intervals. Empty if the data do not.
    """
    ours, theirs = (_best(np.stack([draws[label, kind] for label in family]), ua) for family in (first, second))
    missed = float(np.isnan(ours[0] + theirs[0]).mean())
    rows = [_difference(kind, name, *pair) for name, pair in zip(RETAINED, zip(ours, theirs, strict=True), strict=True)]
    return [{**row, "ua": ua, "missed": missed} for row in rows if row]


def _difference(kind: str, name: str, ours: Array, theirs: Array) -> dict[str, Any]:
    """A row of [draws] against [draws], {} if one has no value."""
    difference, low, high = resampling.interval(ours - theirs)
    if np.isnan(difference):
        return {}
    values = {"first": float(ours[0]), "second": float(theirs[0]), "difference": difference, "low": low, "high": high}
    return {"kind": kind, "metric": name, **values}


def _best(curve: Array, ua: float) -> Array:
    """IRA and CRA [2, draws] of one setting per draw: of those in `curve` [settings, 3, draws] that erase `ua`, the one that keeps most."""
    kept = np.where(curve[:, 0] >= ua, np.nan_to_num(curve[:, 1:]).sum(axis=1), -np.inf)
    chosen = np.take_along_axis(curve[:, 1:], kept.argmax(axis=0)[None, None, :], axis=0)[0]
    found: Array = np.where(np.isfinite(kept.max(axis=0)), chosen, np.nan)
    return found

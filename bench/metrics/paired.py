"""Two methods against each other, with the noise that they share taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from bench.metrics.aggregate import Aggregate
from bench.metrics.uncertainty import Array, Estimate, covariance_of, difference, joint_draws
from bench.metrics.unlearning import METRICS

RETAINED = ("ira", "cra")
COLUMNS = ("kind", "metric", "first", "second", "difference", "low", "high", "significant")
"""Of a row of `differences`."""


def differences(found: Aggregate, first: str, second: str, kind: str) -> list[dict[str, Any]]:
    """UA, IRA, CRA and the score of two methods on the targets of a kind, and first minus second.

    Keys of a row: `COLUMNS`; low and high are 95 %, significant says whether they leave out 0. Metrics that one has not are left out.
    """
    return list(_differences(found, first, second, kind, dict.fromkeys((*METRICS, "score"), found.design.quantile)))


def all_differences(found: Aggregate, kind: str) -> list[dict[str, Any]]:
    """`differences` of all pairs of a kind's family, with both names, method and other; intervals of all but `none` hold at once."""
    quantiles = {metric: found.quantile(kind, metric) for metric in (*METRICS, "score")}
    return [
        {"method": first, "other": second, **row}
        for first, second in combinations(found.family(kind), 2) for row in _differences(found, first, second, kind, quantiles)
    ]  # fmt: skip


def _differences(found: Aggregate, first: str, second: str, kind: str, quantiles: dict[str, float]) -> Iterator[dict[str, Any]]:
    ours, theirs = found.noise[first, kind], found.noise[second, kind]
    for metric, quantile in quantiles.items():
        if metric in ours and metric in theirs:
            value, low, high = difference(ours[metric], theirs[metric], quantile)
            yield {
                "kind": kind, "metric": metric, "first": ours[metric].value, "second": theirs[metric].value,
                "difference": value, "low": low, "high": high, "significant": bool(low > 0 or high < 0),
            }  # fmt: skip


def at_matched_ua(found: Aggregate, first: Sequence[str], second: Sequence[str], kind: str, ua: float) -> list[dict[str, Any]]:
    """What each family keeps with the one of its settings that keeps most of those that erase at least `ua`, and the paired difference.

    A method that erases less also damages less: families compare where they erase alike. The choice is part of what is uncertain:
    it is made anew in draws of all settings' values from their joint distribution. Keys of a row, one for IRA and one for CRA: kind,
    ua, metric, first, second, difference, low, high (95 % of draws), missed: the share of draws in which a family does not reach
    `ua`, left out of the interval. Empty if the data do not.
    """
    drawn = _drawn(found, [*first, *second], kind)
    ours, theirs = _best(drawn[: len(first)], ua), _best(drawn[len(first) :], ua)
    missed = float(np.isnan(ours[0] + theirs[0]).mean())
    rows = []
    for metric, own, other in zip(RETAINED, ours, theirs, strict=True):
        apart = own - other
        rest = apart[1:][~np.isnan(apart[1:])]
        if not np.isnan(apart[0]) and rest.size:
            low, high = np.percentile(rest, [2.5, 97.5])
            rows.append({
                "kind": kind, "metric": metric, "first": float(own[0]), "second": float(other[0]), "difference": float(apart[0]),
                "low": float(low), "high": float(high), "ua": ua, "missed": missed,
            })  # fmt: skip
    return rows


def _drawn(found: Aggregate, methods: Sequence[str], kind: str) -> Array:
    """UA, IRA and CRA [methods, 3, 1 + draws], NaN for those that a method has not; the first are the values themselves."""
    nothing = Estimate(np.nan, np.zeros(len(found.design.stratum)), 0)
    every = [found.noise[method, kind].get(metric, nothing) for method in methods for metric in METRICS]
    values = np.array([one.value for one in every])[:, None]
    drawn: Array = np.concatenate([values, values + joint_draws(covariance_of(every), found.design)], 1)
    return drawn.reshape(len(methods), len(METRICS), -1)


def _best(curve: Array, ua: float) -> Array:
    """IRA and CRA [2, draws] of one setting per draw: of those in `curve` [settings, 3, draws] that erase `ua`, the one that keeps most."""
    kept = np.where(curve[:, 0] >= ua, np.nan_to_num(curve[:, 1:]).sum(axis=1), -np.inf)
    chosen = np.take_along_axis(curve[:, 1:], kept.argmax(axis=0)[None, None, :], axis=0)[0]
    found: Array = np.where(np.isfinite(kept.max(axis=0)), chosen, np.nan)
    return found

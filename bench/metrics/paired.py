"""Two methods against each other, with the noise that they share taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from bench.metrics.aggregate import Aggregate
from bench.metrics.uncertainty import LEVEL, difference, simultaneous_level
from bench.metrics.unlearning import METRICS

RETAINED = ("ira", "cra")
COLUMNS = ("kind", "metric", "first", "second", "difference", "low", "high", "significant")
"""Of a row of `differences`."""


def differences(found: Aggregate, first: str, second: str, kind: str) -> list[dict[str, Any]]:
    """UA, IRA, CRA and the score of two methods on the targets of a kind, and first minus second.

    Keys of a row: `COLUMNS`; low and high are 95 %, significant says whether they leave out 0. Metrics that one has not are left out.
    """
    return list(_differences(found, first, second, kind, dict.fromkeys((*METRICS, "score"), LEVEL)))


def all_differences(found: Aggregate, kind: str) -> list[dict[str, Any]]:
    """`differences` of all pairs of a kind's family, with both names, method and other; intervals of all but `none` hold at once."""
    levels = {metric: found.level(kind, metric) for metric in (*METRICS, "score")}
    return [
        {"method": first, "other": second, **row}
        for first, second in combinations(found.family(kind), 2) for row in _differences(found, first, second, kind, levels)
    ]  # fmt: skip


def _differences(found: Aggregate, first: str, second: str, kind: str, levels: dict[str, float]) -> Iterator[dict[str, Any]]:
    ours, theirs = found.noise[first, kind], found.noise[second, kind]
    for metric, level in levels.items():
        if metric in ours and metric in theirs:
            value, low, high = difference(ours[metric], theirs[metric], found.design, level)
            yield {
                "kind": kind, "metric": metric, "first": ours[metric].value, "second": theirs[metric].value,
                "difference": value, "low": low, "high": high, "significant": bool(low > 0 or high < 0),
            }  # fmt: skip


def at_matched_ua(found: Aggregate, first: Sequence[str], second: Sequence[str], kind: str, ua: float) -> list[dict[str, Any]]:
    """What each family keeps with the one of its settings that keeps most of those that erase at least `ua`, and the paired difference.

    A method that erases less also damages less: families compare where they erase alike. As the settings were chosen for what they
    kept, the 95 % are of all differences of the settings that reach `ua` at once: they hold for whichever was chosen.
    Keys of a row, one for IRA and one for CRA: kind, ua, metric, first, second, difference, low, high, first_row, second_row (the
    settings). Empty if a family does not reach `ua`.
    """
    reached = [[row for row in family if found.noise[row, kind]["ua"].value >= ua] for family in (first, second)]
    if not all(reached):
        return []
    ours, theirs = (max(rows, key=lambda row: (*_kept(found, row, kind), row)) for rows in reached)
    rows = []
    for metric in RETAINED:
        if metric in found.noise[ours, kind] and metric in found.noise[theirs, kind]:
            level = simultaneous_level([found.noise[row, kind][metric] for row in (*reached[0], *reached[1])], found.design)
            (one,) = _differences(found, ours, theirs, kind, {metric: level})
            rows.append({**one, "ua": ua, "first_row": ours, "second_row": theirs})
    return rows


def _kept(found: Aggregate, row: str, kind: str) -> tuple[float, float]:
    """IRA and CRA together, and IRA alone, by which settings are chosen."""
    values = [found.noise[row, kind][metric].value if metric in found.noise[row, kind] else 0.0 for metric in RETAINED]
    return sum(values), values[0]

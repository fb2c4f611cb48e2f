"""From a run's records to the comparison of two settings of a method at the same UA."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.errors import BenchError
from bench.leaderboard.build import outcome_frames
from bench.metrics.matched import at_matched_ua
from bench.metrics.unlearning import draws
from bench.types import KINDS, MetricRules, Record

LEVELS = (0.5, 0.7, 0.8, 0.9)


def compare(records: Sequence[Record], method: str, by: str, rules: MetricRules) -> pd.DataFrame:
    """One row per kind and UA level that both families reach; see `at_matched_ua`.

    A family is all untuned records of the method with one value of the parameter `by` (a tuned one has other values per
    target); their order in the rows is that of the values.
    BenchError unless there are two values.
    """
    families: dict[str, list[Record]] = {}
    for record in records:
        if record.method == method and by in record.config and record.tuning is None:
            families.setdefault(str(record.config[by]), []).append(record)
    if len(families) != 2:
        values = ", ".join(sorted(families)) or "none"
        raise BenchError(f"The run's variants of {method} have {len(families)} values of {by} ({values}), not two: run both in it.")
    first, second = sorted(families)
    drawn = draws(outcome_frames(records), rules)
    rows = []
    for kind in KINDS:
        ours, theirs = ([r.label for r in families[value] if (r.label, kind) in drawn] for value in (first, second))
        for level in LEVELS if ours and theirs else ():
            found = at_matched_ua(drawn, ours, theirs, kind, level)
            rows += [{"first": f"{by}={first}", "second": f"{by}={second}", **found}] if found else []
    return pd.DataFrame(rows).drop_duplicates()

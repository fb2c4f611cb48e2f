"""From a run's records to comparisons of two of its rows, or of two settings of a method at the same UA."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.errors import BenchError, unknown
from bench.leaderboard.build import outcome_frames
from bench.leaderboard.notes import kind_of
from bench.leaderboard.table import KINDS
from bench.metrics.aggregate import aggregate
from bench.metrics.paired import at_matched_ua, differences
from bench.metrics.unlearning import NONE
from bench.types import MetricRules, Record

LEVELS = (0.5, 0.7, 0.8, 0.9)


def compare(records: Sequence[Record], first: str, second: str, rules: MetricRules) -> pd.DataFrame:
    """One row per kind and metric of two rows of the table; see `differences`. Means are over the targets that a row has.

    BenchError for labels that are not there or rows with different targets of a kind.
    """
    by_label = {NONE if record.method == NONE else record.label: record for record in records}
    for label in (first, second):
        if label not in by_label:
            raise unknown("row", label, sorted(by_label))
    found = aggregate(outcome_frames(records), rules)
    rows = []
    for kind in KINDS:
        named = [by_label[label].outcomes["target"] for label in (first, second)]
        targets = [{target for target in own if target and kind_of(target) == kind} for own in named]
        if targets[0] != targets[1] and all(targets):
            raise BenchError(f"{first} and {second} have different {kind} targets: their means do not compare.")
        if all((label, kind) in found.noise for label in (first, second)):
            rows += differences(found, first, second, kind)
    if not rows:
        raise BenchError(f"{first} and {second} have no judged pictures of the same kind of target: there is nothing to compare.")
    return pd.DataFrame(rows)


def matched(records: Sequence[Record], method: str, by: str, rules: MetricRules) -> pd.DataFrame:
    """Two rows per kind and UA level that both families reach; see `at_matched_ua`. Columns first and second are named by the values.

    A family is all untuned records of the method with one value of the parameter `by` (a tuned one has other values per
    target); their order in the rows is that of the values.
    BenchError unless there are two values.
    """
    variants = [record for record in records if record.method == method]
    if not variants:
        raise unknown("method", method, sorted({record.method for record in records}))
    if by not in variants[0].config:
        raise unknown(f"parameter of {method}", by, sorted(variants[0].config))
    families: dict[str, list[Record]] = {}
    for record in variants:
        if record.tuning is None:
            families.setdefault(str(record.config[by]), []).append(record)
    if len(families) != 2:
        raise BenchError(
            f"Two values of {by} are compared, the untuned rows of {method} in this run have {', '.join(sorted(families)) or 'none'}:"
            f" run {method}:{by}=… with each of two, with --tuning untuned."
        )
    first, second = sorted(families)
    found = aggregate(outcome_frames(records), rules)
    rows = []
    for kind in KINDS:
        ours, theirs = ([r.label for r in families[value] if (r.label, kind) in found.noise] for value in (first, second))
        for level in LEVELS if ours and theirs else ():
            rows += at_matched_ua(found, ours, theirs, kind, level)
    if not rows:
        raise BenchError(f"No setting of both {by}={first} and {by}={second} reaches UA {LEVELS[0]}: run stronger ones.")
    return pd.DataFrame(rows).rename(columns={"first": first, "second": second})

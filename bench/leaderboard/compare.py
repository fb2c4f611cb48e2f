"""From a run's records to comparisons of two of its rows, or of two settings of a method at the same UA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.errors import BenchError, unknown
from bench.leaderboard.frames import outcome_frames
from bench.leaderboard.notes import budget_of, kind_of, tuned_values
from bench.leaderboard.table import KINDS
from bench.metrics.aggregate import aggregate
from bench.metrics.paired import COLUMNS, at_matched_ua, differences
from bench.metrics.unlearning import NONE
from bench.types import MetricRules, Record

LEVELS = (0.5, 0.7, 0.8, 0.9)


def compare(records: Sequence[Record], first: str, second: str, rules: MetricRules) -> pd.DataFrame:
    """One row per kind and metric of two rows of the table; see `differences`. Means are over the targets that a row has.

    BenchError for labels that are not there or rows with different targets of a kind.
    """
    pair = rows_named(records, (first, second))
    if first == second:
        raise BenchError(f"{first} is the same row twice: name two.")
    for kind in KINDS:
        targets = [{target for target in record.outcomes["target"] if target and kind_of(target) == kind} for record in pair]
        if targets[0] != targets[1] and all(targets):
            raise BenchError(f"{first} and {second} have different {kind} targets: their means do not compare.")
    rows = _compared(outcome_frames(records), first, second, rules)
    if not rows:
        raise BenchError(f"{first} and {second} have no judged pictures of the same kind of target: there is nothing to compare.")
    return pd.DataFrame(rows)


def by_target(records: Sequence[Record], first: str, second: str, rules: MetricRules) -> pd.DataFrame:
    """UA of two rows on each target that both have, as rows of `differences` with a column target, the largest difference first.

    Each interval is 95 % alone: of twenty targets, one is expected to look different that is not.
    """
    rows_named(records, (first, second))
    frames = {label: frame for label, frame in outcome_frames(records).items() if label in (first, second, NONE)}
    rows = []
    edited = [set(frames[label]["target"]) for label in (first, second) if label != NONE]
    for target in sorted(set.intersection(*edited) if edited else []):
        own = {label: frame[frame["target"] == target] if label != NONE else frame for label, frame in frames.items()}
        rows += [{"target": target, **row} for row in _compared(own, first, second, rules) if row["metric"] == "ua"]
    return pd.DataFrame(sorted(rows, key=lambda row: -abs(row["difference"])), columns=["target", *COLUMNS])


def made_otherwise(first: Record, second: Record) -> list[str]:
    """What two rows differ in beside their numbers: parameters, tuning, numerics. Of two methods, parameters say nothing."""
    found = []
    if first.method == second.method:
        names = sorted({*first.config, *second.config})
        found += _unlike("parameter", {name: (first.config.get(name), second.config.get(name)) for name in names})
        if first.version != second.version:
            found.append(f"version {first.version} and {second.version}")
    budgets = [budget_of(record) for record in (first, second)]
    if budgets[0] != budgets[1]:
        found.append(f"tuning: {budgets[0]} and {budgets[1]}")
    if first.method == second.method:
        found += [f"tuned for {text}" for text in (*tuned_values(first), *tuned_values(second))]
    names = sorted({*first.numerics, *second.numerics})
    return found + _unlike("numerics", {name: (first.numerics.get(name), second.numerics.get(name)) for name in names})


def rows_named(records: Sequence[Record], labels: Sequence[str]) -> list[Record]:
    """The records with these labels; the unedited model's is `none`. BenchError for one that is not there."""
    by_label = {NONE if record.method == NONE else record.label: record for record in records}
    for label in labels:
        if label not in by_label:
            raise unknown("row", label, sorted(by_label))
    return [by_label[label] for label in labels]


def _compared(frames: Mapping[str, pd.DataFrame], first: str, second: str, rules: MetricRules) -> list[dict[str, Any]]:
    found = aggregate(frames, rules)
    kinds = [kind for kind in KINDS if all((label, kind) in found.noise for label in (first, second))]
    return [row for kind in kinds for row in differences(found, first, second, kind)]


def _unlike(what: str, values: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what} {name}: {ours} and {theirs}" for name, (ours, theirs) in values.items() if ours != theirs]


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

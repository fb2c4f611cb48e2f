"""What a leaderboard is: columns that say what they mean, rows of cells, footnotes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import pandas as pd

from bench.metrics.unlearning import NONE

KINDS = ("style", "object", "mixed")
TABLES = (*KINDS, *(f"new {kind}" for kind in KINDS), *(f"{kind} attacks" for kind in KINDS), "cost")
"""One per kind of target, the same for new concepts, what attacks bring back, and the cost; ranks are in the first alone."""


@dataclass(frozen=True)
class Column:
    """What a column of values means. `unit` is that of the stored value; `title` names the one shown, after × `scale`."""

    table: str
    key: str
    title: str
    unit: str
    direction: Literal["higher", "lower", "none"] = "none"
    """Which way is better; "none" for what is only shown."""
    scale: float = 1.0
    digits: int = 0
    marked: bool = True
    """Whether tables say which values are best: not of what was measured in seconds apart, nor of what is noise around zero for all
    that do no harm."""


@dataclass(frozen=True)
class Cell:
    """A value in its column's unit, None where there is none; its 95 % interval where one is defined; the `n` behind it.

    `seed_sd`, of a distance, is the standard deviation over seeds of the same from one seed's pictures.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seed_sd: float | None = None


class Rank(NamedTuple):
    """A rank from 1 and the ranks that the row could have, all rows of the table at once with 95 %."""

    place: int
    best: int
    worst: int


@dataclass(frozen=True)
class Row:
    """One method: cells by (table, column key), ranks by table, hashes of what it was made from."""

    label: str
    method: str
    version: int
    control: bool
    ranks: Mapping[str, Rank]
    """Without the tables in which it is not ranked."""
    cells: Mapping[tuple[str, str], Cell]
    record: str
    numerics: str
    footnotes: tuple[int, ...]
    """Numbers of those that concern it, from 1."""
    doubts: frozenset[str]
    """Tables, or kinds of targets, of which one of them says that the numbers mean something else than they seem to."""

    def unreliable(self, table: str) -> bool:
        """Whether that is so of the numbers in one of the tables."""
        return table in self.doubts or table.removeprefix("new ").removesuffix(" attacks") in self.doubts


@dataclass(frozen=True)
class Leaderboard:
    """All that the exports print."""

    protocol: str
    provenance: str
    """Hash of all records and rules."""
    concepts: int
    """Targets that any row has or lacks."""
    seeds: int
    invalid: str | None
    """Why no number here may be used, None if they may."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    """Sorted; `groups` has them in the order to print."""
    footnotes: tuple[str, ...]
    """Of single rows, which name them by number, from 1."""
    remarks: tuple[str, ...]
    """Of all rows."""
    targets: pd.DataFrame
    """`per_target` of `bench.metrics.unlearning` and of `bench.metrics.artifacts`, with the methods' labels."""
    differences: pd.DataFrame
    """`bench.metrics.paired.all_differences`, with the methods' labels; empty without outcomes."""
    became: pd.DataFrame
    """`bench.metrics.unlearning.confusions`, with the methods' labels."""
    attacks: pd.DataFrame
    """`bench.metrics.robustness.attacked`, with the methods' labels; empty without attacks."""
    attack_curves: pd.DataFrame
    """`bench.metrics.robustness.curves`, likewise."""
    attack_prompts: pd.DataFrame
    """The prompts that ended attacks: method, attack and the outcome's columns."""
    citations: tuple[str, ...]
    """BibTeX entries, sorted, each once."""
    published: tuple[Mapping[str, Any], ...] = ()
    """What papers say of the same protocol, rows of results/published: shown beside, never averaged or ranked."""

    def tables(self) -> list[str]:
        """Names of its tables in the order of `TABLES`."""
        return [table for table in TABLES if any(column.table == table for column in self.columns)]

    @property
    def lacks_outcomes(self) -> bool:
        """Whether no method has any, but the unedited model."""
        keys = [(table, "targets") for table in KINDS if table in self.tables()]
        return not any(row.cells[key].value for row in self.rows if row.method != NONE for key in keys)

    def columns_of(self, table: str) -> list[Column]:
        """Columns of one of its tables."""
        return [column for column in self.columns if column.table == table]

    def groups(self, table: str) -> list[list[Row]]:
        """Rows from top to bottom: `none` as the ceiling; what is ranked, by rank; what is not; controls. None is empty."""
        own, ranked = self.columns_of(table), table.removeprefix("new ")

        def group(row: Row) -> int:
            return 0 if row.method == NONE else 3 if row.control else 1 if ranked in row.ranks else 2

        shown = [row for row in self.rows if not table.endswith("attacks") or any(row.cells[table, c.key].value is not None for c in own)]
        rows = sorted(shown, key=lambda row: (group(row), row.ranks[ranked].place if ranked in row.ranks else 0, row.label))
        return [list(members) for _, members in groupby(rows, key=group)]

    def unsure(self, column: Column) -> set[str]:
        """Labels of ranked rows below the best value of a column that no ranked row is surely better than."""
        found = self.differences
        if column.direction != "higher" or column.table not in KINDS or found.empty:
            return set()
        own = {row.label: row.cells[column.table, column.key].value for row in self.rows if column.table in row.ranks}
        values = {label: value for label, value in own.items() if value is not None}
        if not values:
            return set()
        own_metric = (found["kind"] == column.table) & (found["metric"] == column.key) & found["significant"]
        rows = found[own_metric & found["method"].isin(values) & found["other"].isin(values)]
        worse = {*rows.loc[rows["difference"] > 0, "other"], *rows.loc[rows["difference"] < 0, "method"]}
        return {label for label in values if values[label] < max(values.values())} - worse

    def places(self, column: Column) -> dict[str, int]:
        """Labels of the best (1) and second (2) *shown* values of a column among ranked rows; ties share a place."""
        if column.direction == "none" or not column.marked:
            return {}
        shown: dict[str, float] = {}
        for row in self.rows:
            cell, goals = row.cells[column.table, column.key], row.cells.get((column.table, "goals"))
            whole = goals is None or cell.n == goals.value  # an attack with holes was tried on other goals
            if cell.value is not None and whole and (column.table in row.ranks or (column.table not in KINDS and row.ranks)):
                shown[row.label] = round(cell.value * column.scale, column.digits)
        best = sorted(set(shown.values()), reverse=column.direction == "higher")[:2]
        return {label: best.index(value) + 1 for label, value in shown.items() if value in best}


COST = (
    Column("cost", "fit_seconds", "Fit (s)", "s", "lower", digits=1, marked=False),
    Column("cost", "seconds_per_image", "Image (s)", "s", "lower", digits=3, marked=False),
    Column("cost", "ratio_to_none", "Time / none", "ratio", "lower", digits=2, marked=False),
    Column("cost", "peak_memory_mb", "Memory (MB)", "MB", "lower", marked=False),
    Column("cost", "stored_mb", "Stored (MB)", "MB", "lower", digits=2, marked=False),
)


DISTANCES = {
    "kernel": partial(Column, title="Kernel dist. ×1000", unit="squared MMD", scale=1000, digits=2, marked=False),
    "frechet": partial(Column, title="Fréchet distance", unit="squared distance", digits=2),
    "fid_unlearncanvas": partial(Column, title="FID (UnlearnCanvas)", unit="squared distance", digits=2),
    "fid": partial(Column, title="FID (clean)", unit="squared distance", digits=2),
    "kid": partial(Column, title="KID ×1000", unit="squared MMD", scale=1000, digits=2, marked=False),
}
"""By the key of a suite's `Distance`."""


def new_columns(kind: str) -> tuple[Column, ...]:
    """What to expect of new concepts of a kind."""
    share = partial(Column, f"new {kind}", unit="share", direction="higher", scale=100, digits=1)
    from_cra = (share("cra", "CRA (%)"), share("score", "Score (%)")) if kind != "mixed" else ()
    return share("ua", "UA (%)"), share("ira", "IRA (%)"), *from_cra, Column(f"new {kind}", "targets", "Targets", "targets")


def kind_columns(kind: str, artifacts: bool, clip: bool, distances: Collection[str]) -> tuple[Column, ...]:
    """Columns for one kind of target, with those that something was measured for.

    Mixed targets leave no other kind, hence no CRA and nothing made of it.
    """
    share = partial(Column, kind, unit="share", scale=100, digits=1)
    from_cra = (
        share("cra", "CRA (%)", direction="higher"),
        share("score", "Score (%)", direction="higher"),
        share("average", "Avg (%), not ranked"),
        *((share("ga", "GA (%), not ranked"),) if artifacts else ()),
    )
    from_artifacts = (
        share("ar_target", "AR target (%)", direction="lower"), share("ar_retained", "AR retained (%)", direction="lower")
    )  # fmt: skip
    from_clip = (
        Column(kind, "clip_target", "CLIP target", "100 · cosine", digits=2),
        Column(kind, "clip_retained", "CLIP retained", "100 · cosine", "higher", digits=2),
    )
    return (
        share("ua", "UA (%)", direction="higher"),
        share("ira", "IRA (%)", direction="higher"),
        *(from_cra if kind != "mixed" else ()),
        *(from_artifacts if artifacts else ()),
        *(from_clip if clip else ()),
        *(column(kind, key, direction="lower") for key, column in DISTANCES.items() if key in distances),
        Column(kind, "judged", "UA pictures", "pictures"),
        Column(kind, "targets", "Targets", "targets"),
    )

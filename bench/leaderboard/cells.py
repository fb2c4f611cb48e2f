"""How a format writes the cells of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.leaderboard.table import Cell, Column, Rank, Row
from bench.metrics.unlearning import NONE


@dataclass(frozen=True)
class Markup:
    """How a format writes plain text, the best (1) and second (2) value, and marks: of footnotes, what may equal the best, doubted rows."""

    escape: Callable[[str], str]
    best: str
    second: str
    mark: str
    dagger: str = "†"
    doubt: str = "‡"

    def place(self, text: str, place: int | None) -> str:
        """A value, marked if it is the best or the second."""
        return {1: self.best, 2: self.second, None: "{}"}[place].format(self.escape(text))


def rank_of(rank: Rank | None) -> str:
    """With those that it could have, if there are others."""
    if rank is None:
        return ""
    return f"{rank.place}" if rank.best == rank.worst else f"{rank.place} [{rank.best}–{rank.worst}]"


def name_of(row: Row, table: str, markup: Markup, brief: bool = False) -> str:
    """A row's label in a table, with its role and footnotes."""
    # Where space is short, a control is known by its empty rank.
    ceiling = " (anchor's prompt)" if table.endswith("attacks") else " (ceiling)"
    role = ceiling if row.method == NONE else " (control)" if row.control and not brief else ""
    marks = markup.mark.format(",".join(map(str, row.footnotes))) if row.footnotes else ""
    return markup.escape(" ".join(row.label.split()) + role) + (markup.doubt if row.unreliable(table) else "") + marks


def value_of(cell: Cell, column: Column, markup: Markup, place: int | None, with_interval: bool, dagger: str) -> str:
    """A value with its interval, or its spread over seeds, rounded."""
    if cell.value is None:
        return markup.escape("–")

    text = markup.place(shown(cell.value, column), place) + dagger
    if cell.seed_sd is not None:
        return text + markup.escape(f" ± {shown(cell.seed_sd, column)}")
    if cell.low is None or cell.high is None or not with_interval:
        return text
    return text + markup.escape(f" [{shown(cell.low, column)}, {shown(cell.high, column)}]")


def shown(value: float, column: Column) -> str:
    """Rounded, in the unit that the column shows."""
    # Adding 0 turns a rounded −0 into 0.
    return f"{round(value * column.scale, column.digits) + 0.0:.{column.digits}f}"

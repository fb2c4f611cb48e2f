"""Columns and cells of what attacks bring back."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.leaderboard.notes import Note
from bench.leaderboard.table import KINDS, Cell, Column
from bench.metrics.robustness import UNION
from bench.metrics.unlearning import NONE
from bench.registry import ATTACK_SETS


def attack_columns(found: pd.DataFrame) -> tuple[Column, ...]:
    """Per kind of target UA without attack, after each, and under the union of the fixed set; of `robustness.attacked`."""
    columns = []
    for kind in KINDS:
        own = found[found["kind"] == kind]
        names = [name for name in (*ATTACK_SETS[UNION], *sorted(own["attack"].unique())) if name in set(own["attack"])]
        names = [name for name in dict.fromkeys(names) if name != UNION]
        union = [UNION] if UNION in set(own["attack"]) else []
        table = f"{kind} attacks"
        columns += [Column(table, "before", "UA (%)", "share", "higher", 100, 1)] if names else []
        columns += [Column(table, name, f"{name} (%)", "share", "higher", 100, 1) for name in (*names, *union)]
        columns += [Column(table, "goals", "Goals", "pictures")] if names else []
    return tuple(columns)


def uncalibrated(found: pd.DataFrame) -> list[Note]:
    """Remarks on attacks that reach nothing where all could be reached: on the unedited model, asked for the concept's anchor."""
    nothing = found[(found["method"] == NONE) & (found["drop"] == 0) & (found["attack"] != UNION)]
    return [
        Note(
            f"{', '.join(own['attack'])}: on the unedited model, asked for the anchor, no {kind} is brought back either, so that to survive"
            " this proves nothing.",
            set(),
        )
        for kind, own in nothing.groupby("kind")
    ]


def attack_cells(found: pd.DataFrame, method: str) -> dict[tuple[str, str], Cell]:
    """Of one method, for all of `attack_columns`; empty where it was not attacked."""
    cells = {}
    for column in attack_columns(found):
        own = found[(found["method"] == method) & (found["kind"] == column.table.removesuffix(" attacks"))]
        # Where an attack has a hole, it has fewer goals than the others.
        most = own.sort_values("goals", ascending=False, kind="stable")
        row = own[own["attack"] == column.key] if column.key not in ("before", "goals") else most
        cells[column.table, column.key] = _cell(row.iloc[0], column.key) if len(row) else Cell(None)
    return cells


def _cell(row: pd.Series, key: str) -> Cell:
    if key == "goals":
        return Cell(float(row["goals"]))
    name = "ua_before" if key == "before" else "ua_after"
    value, low, high = (None if np.isnan(row[f"{name}{end}"]) else float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return Cell(value, low, high, int(row["goals"]))

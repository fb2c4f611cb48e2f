"""Leaderboards as pandas frames, for whoever goes on from their numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.errors import BenchError, unknown
from bench.store import read_records

TABLES = ("leaderboard", "targets", "became", "differences", "attacks", "attack_curves", "attack_prompts")


def load_leaderboard(folder: str | Path, table: str = "leaderboard") -> pd.DataFrame:
    """A table of a run, or of what was published of one.

    `leaderboard` has one line per method and value, unrounded: label, column, value, low, high, n, unit, rank, … (`targets`: one per
    method and target; `differences`: one per pair of methods). Every line names its protocol, provenance and whether it is valid.
    BenchError for another table or a folder without it.
    """
    if table not in TABLES:
        raise unknown("table", table, TABLES)
    path = Path(folder) / f"{table}.csv"
    if not path.is_file():
        raise BenchError(f"{path} is not there: `python -m bench report {folder}` makes the tables of a run.")
    read_records(Path(folder))  # one that was edited by hand is refused with its name
    return pd.read_csv(path, keep_default_na=False, na_values=[""])

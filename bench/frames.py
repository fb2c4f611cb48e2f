"""Leaderboards as pandas frames, for whoever goes on from their numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.errors import BenchError, unknown
from bench.files import unsealed

TABLES = ("leaderboard", "targets", "became", "differences", "attacks", "attack_curves", "attack_prompts", "published")


def load_leaderboard(folder: str | Path, table: str = "leaderboard") -> pd.DataFrame:
    """A table of a run, or of what was published of one.

    `leaderboard` has one line per method and value, unrounded: label, column, value, low, high, n, unit, rank, … (`targets`: one per
    row and target; `differences`: one per pair of methods; `published`: what papers say). Every line of ours names its protocol,
    provenance and whether it is valid. The CSV is read as it is; `python -m bench report FOLDER --check` holds it against its records.
    BenchError for another table, a folder without it, or a record that was edited.
    """
    if table not in TABLES:
        raise unknown("table", table, TABLES)
    path = Path(folder) / f"{table}.csv"
    if not path.is_file():
        raise BenchError(f"{path} is not there: `python -m bench report {folder}` makes the tables of a run.")
    for record in sorted((Path(folder) / "records").glob("*.json")):
        try:
            unsealed(record.read_bytes())
        except ValueError as error:
            raise BenchError(f"{record} is not a record ({error}): restore it, or delete it and give the run's command again.") from error
    return pd.read_csv(path, keep_default_na=False, na_values=[""])

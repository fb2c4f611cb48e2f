"""A run's folder as tables and a picture. Needs no torch: it reads what was stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.errors import BenchError
from bench.files import write_atomic
from bench.grid import draw_grid
from bench.leaderboard.build import build
from bench.leaderboard.export import write_all
from bench.leaderboard.sequence import sequence, to_markdown
from bench.leaderboard.table import Leaderboard
from bench.registry import suite as find_suite
from bench.store import Store


def report(store: Store) -> Leaderboard:
    """Tables and picture from the records and units that are there, into the run's folder."""
    leaderboard = leaderboard_of(store)
    write_tables(leaderboard, store, store.folder)
    return leaderboard


def write_tables(leaderboard: Leaderboard, store: Store, folder: Path) -> None:
    """Every file that is made of records and units."""
    write_all(leaderboard, folder)
    draw_grid(store, folder)
    order = store.config().get("sequential")
    if order:
        table = sequence(store.records(), order, find_suite(store.config()["suite"]).rules)
        write_atomic(folder / "sequential.csv", table.to_csv(index=False, lineterminator="\n").encode())
        write_atomic(folder / "sequential.md", to_markdown(table, order).encode())


def leaderboard_of(store: Store) -> Leaderboard:
    """The table that a run's records make."""
    config = store.config()
    suite = find_suite(config["suite"])
    if config["preset"] not in suite.presets:
        raise BenchError(f'{store.folder / "config.json"} names the preset "{config["preset"]}", which {suite.name} has not: run again.')
    leaderboard = build(store.records(), suite.rules, suite.floors)
    if not suite.presets[config["preset"]].ranked:
        leaderboard = replace(leaderboard, invalid=f"the preset {config['preset']} only shows that everything works")
    return leaderboard


def publish(store: Store, folder: Path) -> None:
    """Copy what is small and citable out of a run: tables, records, picture."""
    for pattern in ("*.csv", "leaderboard.*", "sequential.md", "citations.bib", "grid.png", "records/*.json"):
        for path in sorted(store.folder.glob(pattern)):
            write_atomic(folder / path.relative_to(store.folder), path.read_bytes())

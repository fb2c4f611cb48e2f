"""How far a run is, from its plan and the files that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.store import Store

LAST = 50
"""Units that the pace is taken from."""


@dataclass(frozen=True)
class Done:
    """What is there and what is planned, of a method or of all."""

    label: str
    units_done: int
    units: int
    pictures_done: int
    pictures: int


@dataclass(frozen=True)
class Progress:
    """A run's state."""

    methods: tuple[Done, ...]
    total: Done
    broken: dict[str, str]
    """What broke, and how: the last line of its traceback."""
    pictures_a_second: float | None
    """Over the last `LAST` units, None where too few are there or clocks say nonsense."""
    has_tables: bool

    def sentence(self) -> str:
        """In words."""
        left = self.total.pictures - self.total.pictures_done
        if not left:
            return "Complete." if self.has_tables else "All is sampled; the run's command makes the tables."
        if not self.pictures_a_second:
            return f"{left} pictures are left."
        minutes = left / self.pictures_a_second / 60
        time = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes" if minutes > 1.5 else "a minute"
        return f"{left} pictures are left: about {time} at {self.pictures_a_second:.1f} pictures/s, if it runs."


def progress_of(store: Store) -> Progress:
    """Units that have a file, of those of the plan. Rows that agree on a target share its units, which count for each."""
    entries = (store.read_json("plan.json", ["units"]) or {"units": []})["units"]
    files = {path.name.split(".")[0]: path for path in store.all_unit_files()}
    labels = dict.fromkeys(entry["method"] for entry in entries)
    methods = tuple(_done(label, [entry for entry in entries if entry["method"] == label], files) for label in labels)
    total = _done("in all", list({entry["unit"]: entry for entry in entries}.values()), files)
    broken = {name: text.strip().splitlines()[-1] for name, text in (store.read_json("failures.json", ()) or {}).items()}
    pictures = {entry["unit"]: entry["pictures"] for entry in entries}
    written = sorted((path.stat().st_mtime, pictures[unit]) for unit, path in files.items() if unit in pictures)[-LAST:]
    seconds = written[-1][0] - written[0][0] if written else 0.0
    pace = sum(n for _, n in written[1:]) / seconds if seconds > 0 else None
    return Progress(methods, total, broken, pace, (store.folder / "leaderboard.csv").is_file())


def _done(label: str, entries: Sequence[Mapping[str, Any]], files: Mapping[str, object]) -> Done:
    there = [entry for entry in entries if entry["unit"] in files]
    pictures, done = (sum(entry["pictures"] for entry in own) for own in (entries, there))
    return Done(label, len(there), len(entries), done, pictures)

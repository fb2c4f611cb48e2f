"""How far a run is, from its plan and the files that are there."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import packed
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.store import Store

LAST = 8
"""Bundles that the pace is taken from, as the units of one are written nearly all at once."""


@dataclass(frozen=True)
class Done:
    """What is there and what is planned, of a method or of all."""

    label: str
    units_done: int
    units: int
    pictures_done: int
    pictures: int
    failed: int
    """Pictures that there will not be."""


@dataclass(frozen=True)
class Progress:
    """A run's state."""

    methods: tuple[Done, ...]
    total: Done
    next: str
    """What is done now, if it runs in the plan's order; empty when all is sampled."""
    failed: dict[str, str]
    """What is left out, and why."""
    pictures_a_second: float | None
    """Over the last `LAST` bundles, None where nothing is there or clocks say nonsense."""
    has_tables: bool
    """Of this very plan."""

    def sentence(self) -> str:
        """In words."""
        left = self.total.pictures - self.total.pictures_done - self.total.failed
        if not left:
            return "Complete." if self.has_tables else "All is sampled; the run's command makes the tables."
        rate = self.pictures_a_second
        pace = f": about {duration(left / rate)} at {rate:.1f} pictures/s, if it runs" if rate else ""
        return f"{left} pictures are left{pace}. Next: {self.next}."


def duration(seconds: float) -> str:
    """In words, roughly."""
    minutes, days = seconds / 60, seconds / 86_400
    if days > 2:
        return f"{days:.0f} days"
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes" if minutes > 1.5 else "a minute"


def progress_of(store: Store) -> Progress:
    """Units that have a file, of those of the plan. Rows that agree on a target share its units, which count for each."""
    plan = store.read_json("plan.json", ["units", "plan"])
    if plan is None:
        raise BenchError(f"{store.folder} has no plan.json: give the run's command again.")
    entries, files = plan["units"], {file.unit: file.path for file in store.all_unit_files()}
    wanting = {entry["fit"] for entry in entries if entry["unit"] not in files}
    failures = {fit: failure for fit, failure in store.failures().items() if fit in wanting}
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_method.setdefault(entry["method"], []).append(entry)
    methods = tuple(_done(label, own, files.keys(), failures.keys()) for label, own in by_method.items())
    every = list({entry["unit"]: entry for entry in entries}.values())
    times, begun = {}, (store.folder / "plan.json").stat().st_mtime
    for entry in every:
        if entry["unit"] in files:
            with suppress(FileNotFoundError):  # just replaced by another process
                times[entry["unit"]] = files[entry["unit"]].stat().st_mtime
    failed = {failure.name: failure.reason for failure in failures.values()}
    total = _done("in all", every, files.keys(), failures.keys())
    now, pace = _next(store, every, files.keys(), failures.keys()), _pace(every, times, begun)
    return Progress(methods, total, now, failed, pace, _tabled(store) == plan["plan"])


def _done(label: str, entries: Sequence[Mapping[str, Any]], files: Set[str], failed: Collection[str]) -> Done:
    there = [entry for entry in entries if entry["unit"] in files]
    never = [entry for entry in entries if entry["unit"] not in files and entry["fit"] in failed]
    pictures, done, lost = (sum(entry["pictures"] for entry in own) for own in (entries, there, never))
    return Done(label, len(there), len(entries), done, pictures, lost)


def _next(store: Store, entries: Sequence[Mapping[str, Any]], files: Set[str], failed: Collection[str]) -> str:
    """All fits come first."""
    left = [entry for entry in entries if entry["unit"] not in files and entry["fit"] not in failed]
    if not left:
        return ""
    fits: dict[str, Mapping[str, Any]] = {}
    for entry in left:
        fits.setdefault(entry["fit"], entry)
    missing = (own for fit, own in fits.items() if own["target"] and not packed.exists(store.folder / "erasures" / fit))
    unfitted = next(missing, None)
    entry = unfitted or left[0]
    attack = "" if unfitted else entry.get("attack", "")
    verb = "fitting" if unfitted else "attacking" if attack else "sampling"
    return f"{verb} {entry['method']}" + (f" on {entry['target']}" if entry["target"] else "") + (f" with {attack}" if attack else "")


def _pace(entries: Sequence[Mapping[str, Any]], times: Mapping[str, float], begun: float) -> float | None:
    """Pictures a second of bundles that followed each other, by when the last unit of each was written.

    Before there are two of them, since the run has begun.
    """
    bundles: dict[int, list[Mapping[str, Any]]] = {}
    for entry in entries:
        bundles.setdefault(entry["bundle"], []).append(entry)
    ended = sorted(
        (max(times[entry["unit"]] for entry in own), sum(entry["pictures"] for entry in own))
        for own in bundles.values() if all(entry["unit"] in times for entry in own)
    )[-LAST:]  # fmt: skip
    if len(ended) < 2:
        since = [(times[entry["unit"]], entry["pictures"]) for entry in entries if times.get(entry["unit"], 0.0) > begun]
        ended = [(begun, 0), (max((when for when, _ in since), default=begun), sum(pictures for _, pictures in since))]
    seconds = ended[-1][0] - ended[0][0]
    return sum(pictures for _, pictures in ended[1:]) / seconds if seconds > 0 else None


def _tabled(store: Store) -> str | None:
    """The plan that the tables are of."""
    path = next(iter(sorted(store.folder.glob("records/*.json"))), None)
    if path is None or not (store.folder / "leaderboard.csv").is_file():
        return None
    with suppress(ValueError, KeyError, TypeError, OSError):
        return str(json.loads(path.read_text())["provenance"]["plan"])
    return None

"""A run from its session to its tables. The same command again continues it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from bench import cost
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.files import write_atomic
from bench.grid import draw_grid
from bench.leaderboard.build import build
from bench.leaderboard.export import write_all
from bench.leaderboard.table import Leaderboard
from bench.records import first_units, make_records, sampling_cost_file
from bench.registry import suite as find_suite
from bench.session import Session
from bench.store import Store


class Reporter(Protocol):
    """What a run tells while it goes on."""

    def say(self, text: str) -> None:
        """What is being done now."""

    def total(self, pictures: int, done: int) -> None:
        """How many pictures there are to sample, and how many an earlier run left."""

    def advance(self, pictures: int) -> None:
        """So many more pictures are sampled."""

    def warn(self, text: str) -> None:
        """Something that the user should see afterwards too."""


def run(session: Session, store: Store, reporter: Reporter, sharing: bool = True) -> Leaderboard:
    """Execute what is not done yet, measure cost, write records, tables and the picture."""
    config, units = session.config, session.plan.units
    store.write_json("config.json", {**config.model_dump(mode="json"), "numerics": session.numerics, "protocol": session.protocol})
    store.write_json("plan.json", {"units": [
        {"unit": u.id, "fit": u.fit.id, "method": u.fit.spec.label, "target": str(u.fit.target or ""), "pictures": len(u.requests)}
        for u in units
    ]})  # fmt: skip
    worker = Worker(
        session.suite, store, session.model, session.scorer, replace(session.sampler, share=sharing), config.steps,
        config.images, config.fit_seed, reporter.say, reporter.advance, reporter.warn,
    )  # fmt: skip
    left = {unit.id: len(unit.requests) for unit in units if not worker.done(unit)}
    reporter.total(session.plan.pictures, session.plan.pictures - sum(left.values()))
    for bundle in session.plan.bundles:
        todo = {unit.id: unit for unit in bundle if left.pop(unit.id, None)}  # rows that agree on a target share its units
        worker.execute(list(todo.values()))
    _measure_cost(session, worker)
    reporter.say("scoring")
    store.write_records(make_records(session, store, worker.failed))
    return report(store)


def report(store: Store) -> Leaderboard:
    """Tables and picture from the records and units that are there."""
    config = store.config()
    suite = find_suite(config["suite"])
    if config["preset"] not in suite.presets:
        raise BenchError(f'{store.folder / "config.json"} names the preset "{config["preset"]}", which {suite.name} has not: run again.')
    leaderboard = build(store.records(), suite.rules, suite.floors)
    if not suite.presets[config["preset"]].ranked:
        leaderboard = replace(leaderboard, invalid=f"the preset {config['preset']} only shows that everything works")
    write_all(leaderboard, store.folder)
    draw_grid(store)
    return leaderboard


def publish(store: Store, folder: Path) -> None:
    """Copy what is small and citable out of a run: tables, records, picture."""
    for pattern in ("*.csv", "leaderboard.*", "citations.bib", "grid.png", "records/*.json"):
        for path in sorted(store.folder.glob(pattern)):
            write_atomic(folder / path.relative_to(store.folder), path.read_bytes())


def _measure_cost(session: Session, worker: Worker) -> None:
    """Measured once and kept, as time is no result."""
    first = first_units(session.plan, worker.failed)
    name = sampling_cost_file(first)
    if worker.store.read_json(name, [unit.fit.id for unit in first.values()]) is None:
        worker.say("measuring cost")
        erasures = {unit.fit.id: worker.erasure(unit.fit) for unit in first.values()}
        requests = next(iter(first.values())).requests
        worker.store.write_json(name, cost.measure(session.sampler, erasures, requests))

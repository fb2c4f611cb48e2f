"""A run from its session to its tables. The same command again continues it."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from bench import cost
from bench.engine.worker import Worker
from bench.leaderboard.table import Leaderboard
from bench.records import first_units, make_records, sampling_cost_file
from bench.session import Session
from bench.store import Store
from bench.tables import report


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


def _measure_cost(session: Session, worker: Worker) -> None:
    """Measured once and kept, as time is no result."""
    first = first_units(session.plan, worker.failed)
    name = sampling_cost_file(first)
    if worker.store.read_json(name, [unit.fit.id for unit in first.values()]) is None:
        worker.say("measuring cost")
        erasures = {unit.fit.id: worker.erasure(unit.fit) for unit in first.values()}
        requests = next(iter(first.values())).requests
        worker.store.write_json(name, cost.measure(session.sampler, erasures, requests))

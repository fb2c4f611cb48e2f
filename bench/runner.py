"""A run from its session to its tables. The same command again continues it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from bench import cost
from bench.config import WHOLE, Resume, Shard
from bench.engine import local
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.leaderboard.table import Leaderboard
from bench.plan import BASE
from bench.records import first_units, make_records, sampling_cost_file
from bench.registry import methods
from bench.session import Session
from bench.sources import source_digest
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


class Ended(NamedTuple):
    """How a run ended."""

    leaderboard: Leaderboard | None
    """None where pictures are left."""
    left: int
    """Pictures that are not sampled: the run was stopped, or they are another shard's."""
    broken: Mapping[str, str]
    """What broke and is left out, with its traceback."""


def run(
    session: Session, store: Store, reporter: Reporter, sharing: bool = True, resume: Resume = "missing",
    stop: Callable[[], bool] = lambda: False, shard: Shard = WHOLE,
) -> Ended:  # fmt: skip
    """Execute what is not done, and when nothing is left measure cost, write records, tables and the picture."""
    config, units = session.config, session.plan.units
    _describe(session, store, reporter)
    worker = Worker(
        session.suite, store, session.model, session.scorer, replace(session.sampler, share=sharing), config.steps,
        config.images, config.fit_seed, reporter.say, reporter.advance, reporter.warn, stop, again=resume == "always",
    )  # fmt: skip
    broken: Mapping[str, str] = {}
    if resume != "only-cache":
        bundles = shard.own(session.plan.bundles)
        own = {unit.id: unit for bundle in bundles for unit in bundle}
        todo = {unit.id: len(unit.requests) for unit in worker.left(list(own.values()))}
        total = sum(len(unit.requests) for unit in own.values())
        reporter.total(total, total - sum(todo.values()))
        broken = local.execute(worker, bundles)
        store.write_json("failures.json", broken)
        if stop():  # there may be little time left
            return Ended(None, sum(n for id_, n in todo.items() if id_ not in worker.written), broken)
    left = [unit for unit in {unit.id: unit for unit in units}.values() if unit.fit.id not in worker.failed and not worker.done(unit)]
    pictures = sum(len(unit.requests) for unit in left)
    if resume == "only-cache":
        worker.failed.update({unit.fit.id: "not all of its pictures are sampled yet" for unit in left})
    elif left:
        return Ended(None, pictures, broken)
    else:
        _measure_cost(session, worker)
    base = next(unit.fit for unit in units if unit.fit.spec.name == BASE)
    if base.id in worker.failed:
        raise BenchError(f"Nothing can be compared: of the unedited model, {worker.failed[base.id]}.")
    reporter.say("scoring")
    store.write_records(make_records(session, store, worker.failed))
    return Ended(report(store), pictures, broken)


def _describe(session: Session, store: Store, reporter: Reporter) -> None:
    """What is run, for whoever looks into the folder; a warning about methods whose code is no longer what it was there."""
    own = {spec.name: {"version": spec.version, "source": source_digest(methods()[spec.name])} for spec in session.plan.specs}
    kept = (store.read_json("config.json", ()) or {}).get("sources", {})
    for name in sorted(kept.keys() & own.keys()):
        if kept[name]["version"] == own[name]["version"] and kept[name]["source"] != own[name]["source"]:
            reporter.warn(
                f"The code of {name} has changed since this folder was begun, its version ({own[name]['version']}) has not: what is"
                " stored is taken for its own. If results may differ, raise the version."
            )
    first = {name: old for name, old in kept.items() if name not in own or old["version"] == own[name]["version"]}
    config = session.config.model_dump(mode="json")
    more = {"numerics": session.numerics, "protocol": session.protocol, "sources": {**own, **first}}
    store.write_json("config.json", {**config, **more})
    store.write_json("plan.json", {"units": [
        {"unit": u.id, "fit": u.fit.id, "method": u.fit.spec.label, "target": str(u.fit.target or ""), "pictures": len(u.requests)}
        for u in session.plan.units
    ]})  # fmt: skip


def _measure_cost(session: Session, worker: Worker) -> None:
    """Measured once and kept, as time is no result."""
    first = first_units(session.plan, worker.failed)
    name = sampling_cost_file(first)
    if worker.store.read_json(name, [unit.fit.id for unit in first.values()]) is None:
        worker.say("measuring cost")
        erasures = {unit.fit.id: worker.erasure(unit.fit) for unit in first.values()}
        requests = next(iter(first.values())).requests
        worker.store.write_json(name, cost.measure(session.sampler, erasures, requests))

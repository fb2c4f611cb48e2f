"""A run from what was asked for to its tables. The same command again continues it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.config import EngineName
from bench.engine.dispatch import dispatch
from bench.engine.job import Crew, Failures, Job, Listener, Reporter
from bench.errors import BenchError
from bench.leaderboard.table import Leaderboard
from bench.store import Store
from bench.tables import report


class Engine(NamedTuple):
    """What executes a run."""

    name: EngineName = "local"
    workers: int | None = None
    """None: one for each GPU, or one on the CPU."""
    address: str | None = None
    """Of a Ray cluster; None: this machine alone."""


class Ended(NamedTuple):
    """How a run ended."""

    leaderboard: Leaderboard | None
    """None where pictures are left."""
    left: int
    """Pictures that are not sampled: the run was stopped, or they are another shard's."""
    failed: Failures
    """What is left out, by fit."""


def run(crew: Crew, folder: Path, reporter: Reporter, stop: Callable[[], bool]) -> Ended:
    """Execute what is not done, and when nothing is left measure cost, write records, tables and the picture."""
    reporter.total(crew.outline.pictures, crew.outline.done)
    store, failed = Store(folder), dispatch(crew, reporter, stop)
    for fit in failed.keys() - store.failures().keys():  # what ended its process could not tell
        store.write_failure(fit, failed[fit])
    finish = crew.finish(failed)
    return Ended(report(store, store.records()) if finish.written else None, finish.left, finish.failed)


def crew_of(job: Job, engine: Engine, listener: Listener, stop: Callable[[], bool]) -> Crew:
    """The workers of a run, the first of them ready. BenchError for what cannot be, also for a folder that holds another run."""
    Store(job.folder).check_same(job.config.model_dump(mode="json"), job.resume)
    if job.resume == "always" and job.shard.of > 1:
        raise BenchError("--resume always cannot be shared out: each --shard would fit again what others use. Delete the folder instead.")
    if engine.name == "ray":
        from bench.engine.on_ray import RayCrew

        return RayCrew(job, engine.workers, engine.address, listener, stop)
    if engine.address:
        raise BenchError("--ray-address is for --engine ray.")
    from bench.engine.devices import devices, threads

    places = devices(job.device, engine.workers)
    if len(places) == 1:
        from bench.engine.inline import Inline

        return Inline(job, listener, stop)
    from bench.engine.processes import Processes

    return Processes(replace(job, threads=threads(places)), places, listener, stop)

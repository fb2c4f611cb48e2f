"""A run in one process: the session, a worker, and the tasks that it is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property, partial

import torch

from bench import cost, packed
from bench.attack_plan import AttackUnit
from bench.config import Shard
from bench.diffusion.numerics import picture_seconds
from bench.distances import Reference, reference_sets
from bench.engine import persist
from bench.engine.job import Failures, Finish, Job, Listener, Outline, Portion, Task
from bench.engine.stopping import Stopped
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.interfaces import Erasure
from bench.plan import BASE, Fit, Unit
from bench.records import DamagedUnitsError, first_units, make_records, sampling_cost_file
from bench.session import prepare
from bench.sources import changed, sources_of
from bench.store import FORMAT, Failure, Store
from bench.types import KINDS

ROUNDS = 3
"""Of making tables, each after units that turned out damaged were sampled again."""


class Part:
    """What this process does for a `Job`. BenchError if the job does not fit the folder, or this machine what others began."""

    def __init__(self, job: Job, listener: Listener, stop: Callable[[], bool]) -> None:
        self.job, self.listener = job, listener
        if job.threads:
            torch.set_num_threads(job.threads)
        known = Store(job.folder)
        kept = job.numerics or known.config().get("numerics")
        self.session = prepare(job.config, job.device, job.dtype, job.compile, kept, sampling=job.resume != "only-cache")
        if job.numerics is None:
            known.check_prepared(self.session.protocol, self.session.numerics, job.resume)
        elif job.numerics != self.session.numerics:
            raise BenchError(f"A worker has other numerics ({self.session.numerics}) than the first ({job.numerics}): use like devices.")
        self.store = Store.create(job.folder)
        self.worker = Worker(
            self.session.suite, self.store, self.session.model, self.session.scorer, replace(self.session.sampler, share=job.sharing),
            self.session.preset, "none" if job.resume == "only-cache" else job.config.images, job.config.fit_seed, listener.say,
            listener.advance, listener.warn, stop,
        )  # fmt: skip
        self.bundles: tuple[Sequence[Unit | AttackUnit], ...] = (*self.session.plan.bundles, *self.session.attacks)
        self.fits = {unit.fit.id: unit.fit for unit in self.session.plan.units}

    @cached_property
    def reference(self) -> Reference:
        """What networks see in the suite's true pictures."""
        return reference_sets(self.session.suite, self.session.scorer.networks)

    def outline(self) -> Outline:
        """Write down what is run, and find what of it is left to do. To do all again, what is there goes first."""
        self._describe()
        if self.job.resume == "always":
            every = [unit for bundle in self.bundles for unit in bundle]
            self.store.remove(file.path for unit in every for file in self.store.unit_files(unit.id))
            for fit in self.fits.values():
                packed.remove(self.worker.place(fit))
        plan, shard = self.session.plan, self.job.shard
        mirrored = Shard(shard.of - shard.number + 1, shard.of)  # so that not the same ones get what cannot be divided
        sampled = len(plan.bundles)
        own = [
            *shard.own(range(plan.row_wise)),
            *mirrored.own(range(plan.row_wise, sampled)),
            *shard.own(range(sampled, len(self.bundles))),
        ]
        units = {unit.id: unit for index in own for unit in self.bundles[index]}
        left = {unit.id: unit for unit in self.worker.left(list(units.values()))}
        total, rest = _pictures(units), _pictures(left)
        if self.job.resume == "only-cache":
            left = {}
        portions = [
            Portion(
                index,
                tuple(unit.fit.id for unit in bundle),
                bundle[0].fit.id if not bundle[0].fit.spec.row_wise else "",
                tuple(unit.blame for unit in bundle),
            )
            for index, bundle in ((index, self.bundles[index]) for index in own)
            if any(unit.id in left for unit in bundle)
        ]
        needed = {unit.fit.id: unit.fit for unit in left.values()}
        self.store.forget_failures(needed)
        fits = tuple(id_ for id_, fit in needed.items() if not packed.exists(self.worker.place(fit)))
        names = {unit.fit.id: unit.fit.name for portion in portions for unit in self.bundles[portion.bundle]}
        names |= {
            unit.id: _attack_name(unit) for portion in portions for unit in self.bundles[portion.bundle] if isinstance(unit, AttackUnit)
        }
        suite, steps = self.session.suite, self.session.preset.steps
        _ = self.reference if left else None  # what is wrong with true pictures is told before any picture is sampled
        seconds = picture_seconds(self.session.sampler, steps, suite.guidance_scale) if left else 0.0
        planned = plan.pictures + _attacked(self.session.attacks)
        return Outline(
            self.session.protocol, self.session.numerics, planned, total, total - rest, fits, names, tuple(portions), seconds,
            self._gathered(fits),
        )  # fmt: skip

    def _gathered(self, fits: Collection[str]) -> int:
        """Pictures that statistics of sparse autoencoders are of, for these fits."""
        suite, preset = self.session.suite, self.session.preset
        inputs = [self.fits[id_].spec.inputs.get(str(self.fits[id_].target), {}) for id_ in fits]
        read = {name.rpartition("/")[2] for own in inputs for name in own}
        kinds = [kind for kind in KINDS if kind in read and kind not in suite.assets.latents]
        return sum(len(suite.statistics_requests(kind, preset)) for kind in kinds)

    def do(self, task: Task, failed: Failures) -> Failures:
        """Do one thing as well as it can be done. Gives what failed, also by others, by fit; what was asked to stop has not."""
        self.worker.failed.update(failed)
        try:
            if task.kind == "fit":
                persist.fit(self.worker, self.fits[task.fit])
            elif task.bundle >= len(self.session.plan.bundles):
                persist.attack(self.worker, self.session.attacks[task.bundle - len(self.session.plan.bundles)])
            else:
                units = self.session.plan.bundles[task.bundle][slice(task.unit, task.unit + 1) if task.kind == "unit" else slice(None)]
                persist.sample(self.worker, units)
        except Stopped:
            pass
        return dict(self.worker.failed)

    def finish(self, failed: Failures) -> Finish:
        """Where no picture is left, measure cost and write records.

        Units are read and held against their digests here; what is damaged is set aside and sampled again.
        """
        self.worker.failed.update(failed)
        written = False
        try:
            for _ in range(ROUNDS):
                if written or self.worker.stop() or self._left():  # where a stop is asked for, there may be little time
                    break
                if self.job.resume != "only-cache":
                    self._measure_cost()
                written = self._write_records()
        except Stopped:
            pass
        return Finish(written, _pictures(self._left()), dict(self.worker.failed))

    def _left(self) -> dict[str, Unit | AttackUnit]:
        """What is not there and may come; from what failed, here or for another shard, nothing will."""
        every = [unit for bundle in self.bundles for unit in bundle]
        missing = {unit.id: unit for unit in self.worker.left(every)}
        known = {name for unit in missing.values() for name in (unit.fit.id, unit.blame)} - self.worker.failed.keys()
        if known:
            self.worker.failed.update({fit: failure for fit, failure in self.store.failures().items() if fit in known})
        if self.job.resume == "only-cache":
            for unit in missing.values():
                name = unit.fit.name if isinstance(unit, Unit) else _attack_name(unit)
                self.worker.failed.setdefault(unit.blame, Failure(name, "not all of its pictures are sampled yet", None))
        return {id_: unit for id_, unit in missing.items() if self.worker.failed.keys().isdisjoint((unit.fit.id, unit.blame))}

    def _make_again(self, damaged: Collection[str]) -> None:
        for id_ in damaged:
            for file in self.store.unit_files(id_):
                with suppress(FileNotFoundError):  # just replaced by another process
                    if file.read() is None:
                        self.listener.warn(f"{file.path.name} is damaged: set aside as {self.store.set_aside(file.path)}")
        self.worker.written.difference_update(damaged)
        for bundle in self.session.plan.bundles if self.job.resume != "only-cache" else ():
            own = [unit for unit in bundle if unit.id in damaged]
            if own:
                persist.sample(self.worker, own)
        for attacked in self.session.attacks if self.job.resume != "only-cache" else ():
            if any(unit.id in damaged for unit in attacked):
                persist.attack(self.worker, attacked)

    def _write_records(self) -> bool:
        """Whether they were written; if not, damaged units were set aside and sampled again."""
        base = next(unit.fit for unit in self.session.plan.units if unit.fit.spec.name == BASE)
        if base.id in self.worker.failed:
            raise BenchError(f"Nothing can be compared: of the unedited model, {self.worker.failed[base.id].reason}.")
        self.listener.say("making tables")
        reasons = {fit: failure.reason for fit, failure in self.worker.failed.items()}
        try:
            records = make_records(self.session, self.store, reasons, self.reference)
        except DamagedUnitsError as error:
            self._make_again(error.units)
            return False
        self.store.write_records(records)
        return True

    def _measure_cost(self) -> None:
        """Measured once and kept, as time is no result."""
        first = first_units(self.session.plan, self.worker.failed.keys())
        name = sampling_cost_file(first)
        if self.store.read_json(name, [unit.fit.id for unit in first.values()]) is None:
            loads = {unit.fit.id: partial(self._load, unit.fit) for unit in first.values()}
            requests = next(iter(first.values())).requests

            def say(text: str) -> None:
                self.listener.say(f"measuring what each method costs: {text}")

            self.store.write_json(name, cost.measure(self.session.sampler, loads, requests, say), replace=False)

    def _load(self, fit: Fit) -> Erasure:
        if self.worker.stop():
            raise Stopped
        return self.worker.erasure(fit)

    def _describe(self) -> None:
        """What is run, for whoever looks into the folder; a warning about methods whose code is no longer what it was there."""
        own = sources_of(self.session.plan.specs)
        kept = self.store.read_json("config.json", ()) or {}
        known = kept.get("sources", {}) if self.job.resume != "always" else {}
        for name in changed(known, own):
            self.listener.warn(
                f"The code of {name} has changed since this folder was begun, its version ({own[name]['version']}) has not: what is"
                " stored is taken for its own. If results may differ, raise the version, or give --resume always."
            )
        first = {name: old for name, old in known.items() if name not in own or old["version"] == own[name]["version"]}
        config = self.job.config.model_dump(mode="json")
        more = {"format": FORMAT, "numerics": self.session.numerics, "protocol": self.session.protocol, "sources": {**own, **first}}
        self.store.write_json("config.json", {**config, **more})
        units = [
            {"unit": u.id, "fit": u.fit.id, "method": u.fit.spec.label, "target": str(u.fit.target or ""), "pictures": len(u.requests),
             "bundle": index}
            for index, bundle in enumerate(self.session.plan.bundles) for u in bundle
        ]  # fmt: skip
        units += [
            {"unit": u.id, "fit": u.fit.id, "method": u.fit.spec.label, "target": str(u.target), "pictures": u.pictures,
             "bundle": index, "attack": u.attack.label}
            for index, attacked in enumerate(self.session.attacks, len(self.session.plan.bundles)) for u in attacked
        ]  # fmt: skip
        rows = {
            spec.label: {
                "method": spec.name,
                "version": spec.version,
                "config": dict(spec.config),
                "card": asdict(spec.card),
                "budget": spec.budget,
            }
            for spec in self.session.plan.specs
        }
        self.store.write_json("plan.json", {"units": units, "plan": self.session.hash, "rows": rows})


def _pictures(units: Mapping[str, Unit | AttackUnit]) -> int:
    return sum(unit.pictures for unit in units.values())


def _attacked(bundles: Iterable[Iterable[AttackUnit]]) -> int:
    return sum(unit.pictures for bundle in bundles for unit in bundle)


def _attack_name(unit: AttackUnit) -> str:
    return f"{unit.attack.label} on {unit.fit.spec.label} on {unit.target}"

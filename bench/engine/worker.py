"""Execute bundles on one device: fit what they need, sample, decode, score, write the units."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch

from bench import packed
from bench.attack_plan import AttackUnit
from bench.config import Images
from bench.cost import FIT_COST, SHARED_SECONDS
from bench.diffusion.call import EditError
from bench.diffusion.memory import PeakMemory, is_out_of_memory, release_freed_memory
from bench.diffusion.model import DiffusionModel
from bench.diffusion.numerics import invariant_slots
from bench.diffusion.rows import Row, check
from bench.diffusion.sampler import Sampler
from bench.diffusion.solvers import solver_of
from bench.engine.desk import Desk
from bench.engine.finish import Finisher
from bench.engine.stopping import Stopped
from bench.erasure import load_erasure, pack
from bench.errors import BenchError, CannotWriteError, DeviceLostError
from bench.interfaces import Erasure
from bench.plan import Fit, Unit
from bench.registry import method
from bench.scoring import Scorer
from bench.session import fit_context
from bench.store import Failure, Store, UnitFile
from bench.suites.suite import Preset, Suite

_MANY = 1_000
"""Units from which on all folders are listed once, rather than a folder for each."""


AnyUnit = TypeVar("AnyUnit", bound=Unit | AttackUnit)


@dataclass(frozen=True)
class Worker:
    """Holds all that is loaded once: model, judges, the run's folder and its numerics."""

    suite: Suite
    store: Store
    model: DiffusionModel
    scorer: Scorer
    sampler: Sampler
    """Its settings; rows that differ in activation edits alone may share the un-edited trajectory, with the same bytes."""
    preset: Preset
    """As configured."""
    images: Images
    fit_seed: int
    say: Callable[[str], None]
    advance: Callable[[int], None]
    warn: Callable[[str], None]
    stop: Callable[[], bool] = lambda: False
    """Whether to finish what is in flight and end."""
    failed: dict[str, Failure] = field(default_factory=dict)
    """Fits that could not be made, and why."""
    loaded: dict[str, Erasure] = field(default_factory=dict)
    """Erasures by fit, so that no bundle reads them again: all that leave the weights alone, and the last of the others."""
    written: set[str] = field(default_factory=set)
    """Ids of the units that this worker has written."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of erasures that were loaded, by fit."""

    def place(self, fit: Fit) -> Path:
        """The folder of an erasure."""
        return self.store.folder / "erasures" / fit.id

    def left(self, units: Sequence[AnyUnit]) -> list[AnyUnit]:
        """Those without a file that has the pictures that the policy keeps, of the erasure that is stored, if one is.

        Each once, as rows that agree on a target share its units. Folders are listed, no unit is read. Fitted again, as where its
        files were lost, an erasure may be another one: not all devices compute the same twice.
        """
        own = {unit.id: unit for unit in units if unit.id not in self.written}
        files: dict[str, list[UnitFile]] = {}
        for file in self.store.all_unit_files() if len(own) > _MANY else (file for id_ in own for file in self.store.unit_files(id_)):
            files.setdefault(file.unit, []).append(file)
        erasures = {unit.fit.id: packed.stored_digest(self.place(unit.fit)) for unit in own.values() if unit.id in files}
        return [
            unit for unit in own.values()
            if not any(file.serves(erasures[unit.fit.id], self.images) for file in files.get(unit.id, ()))
        ]  # fmt: skip

    def execute(self, bundle: Sequence[Unit], slots: int | None = None) -> None:
        """Write every unit of the bundle but those whose erasure cannot be made or used. Units with changed weights must be of one erasure.

        Where memory runs out, what is left is sampled again in half the slots, which its units say. When asked to stop, it writes
        those units that are complete; raises Stopped from within a fit.
        """
        slots = slots or self.sampler.slots
        erasures = {unit.fit.id: erasure for unit in bundle if (erasure := self.ready(unit.fit)) is not None}
        units = [unit for unit in bundle if unit.fit.id in erasures]
        if not units:
            return
        names = list(dict.fromkeys(unit.fit.name for unit in units))
        self.say(f"sampling {names[0]}" + (f" … {names[-1]} ({len(names)} at once)" if names[1:] else ""))
        watched = {id_ for id_, erasure in erasures.items() if erasure.activations}
        desk = Desk(units, self.scorer, self.images, watched, partial(self._write, slots))
        again = self._attempt(units, erasures, slots, desk)
        if again:
            # Only here, outside of the handlers, is what the failed attempt held released.
            gc.collect()
            torch.cuda.empty_cache()
            self.execute([unit for unit in units if unit.id not in desk.written], again)

    def _attempt(self, units: Sequence[Unit], erasures: Mapping[str, Erasure], slots: int, desk: Desk) -> int:
        """Sample; if the rest is to be tried again, without an erasure or in less memory, how many slots to do it in, else 0."""
        try:
            self._sample(units, erasures, slots, desk)
        except EditError as error:
            bad = [id_ for id_, erasure in erasures.items() if any(id(edit) in error.edits for edit in erasure.activations)]
            if len(bad) > 1:
                raise  # one of them: whoever tries them one at a time will see which
            for fit in {unit.fit.id: unit.fit for unit in units if unit.fit.id in bad}.values():
                self.fail(fit, str(error))
            return slots
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            widest = max(Row(unit.requests[0], erasures[unit.fit.id]).slots for unit in units)
            if slots // 2 < widest:
                raise BenchError("Not even one picture at a time fits in memory: use a smaller --dtype or another --device.") from error
        else:
            return 0
        fewer = invariant_slots(replace(self.sampler, slots=slots // 2))
        self.warn(f"out of memory with {slots} slots a call: going on with {fewer}")
        return fewer

    def _sample(self, units: Sequence[Unit], erasures: Mapping[str, Erasure], slots: int, desk: Desk) -> None:
        rows = [Row(request, erasures[unit.fit.id]) for unit in units for request in unit.requests]
        with ExitStack() as stack:
            self.model.sampling_unet(self.sampler.dtype)  # the copy must exist before weights are swapped, to be swapped too
            for erasure in erasures.values():
                if erasure.weights is not None:
                    stack.enter_context(self.model.weights(erasure.weights.values))
            finisher = stack.enter_context(Finisher(self.model, self.scorer, desk.deliver))
            for done in replace(self.sampler, slots=slots).stream(rows, stop=self.stop):
                key = desk.expect(done)
                if done.latent is None:
                    request = rows[key].request
                    name = f"“{request.prompt}” (seed {request.seed})"
                    self.warn(f"{desk.names(done.rows)}: {name} is no picture, its latent was not finite after step {done.step + 1}")
                    desk.deliver(key, None)
                else:
                    finisher.add(key, done.latent, desk.keeps(done.rows), rows[key].request.prompt)
                self.advance(len(done.rows))

    def _write(self, slots: int, unit: Unit, frame: pd.DataFrame) -> None:
        digest = self.digests.get(unit.fit.id, "")
        self.store.write_unit(unit.id, frame.assign(slots=slots, erasure=digest), digest, self.images)
        self.written.add(unit.id)

    def fail(self, fit: Fit, reason: str, traceback: str | None = None) -> None:
        """There will be no pictures of an erasure; whoever makes the tables learns why."""
        self.fail_as(fit.id, Failure(fit.name, reason, traceback))

    def fail_as(self, name: str, failure: Failure) -> None:
        """The same of something else than a fit."""
        self.failed[name] = failure
        self.store.write_failure(name, failure)

    def check_device(self, what: str) -> None:
        """DeviceLostError if this process can do nothing more on its device, as after an illegal access on CUDA."""
        if self.model.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.model.device)
            except RuntimeError as error:
                raise DeviceLostError(
                    f"The GPU answers nothing more ({what}): all that is written is kept, the same command goes on."
                ) from error

    def ready(self, fit: Fit) -> Erasure | None:
        """An erasure, fitted if need be; None, with the reason in `failed`, where a method cannot remove a target."""
        if fit.id in self.failed:
            return None
        if fit.id in self.loaded:
            return self.loaded[fit.id]
        try:
            erasure = self.erasure(fit)
            self._check(erasure)
            for other in [id_ for id_, one in self.loaded.items() if erasure.weights is not None and one.weights is not None]:
                del self.loaded[other]
            self.loaded[fit.id] = erasure
            return erasure
        except CannotWriteError:
            raise
        except BenchError as error:
            self.fail(fit, str(error))
            return None

    def _check(self, erasure: Erasure) -> None:
        row = Row(self.suite.request(self.suite.styles[0], self.suite.objects[0], 1, self.preset.steps), erasure)
        check(self.model, [row], solver_of(self.model.scheduler, [row.request], self.model.device), self.sampler.slots)

    def erasure(self, fit: Fit) -> Erasure:
        """What this run fitted before; fitted now if it is not there, is damaged or is of files that have moved."""
        place = self.place(fit)
        if packed.exists(place):
            with suppress(BenchError):
                return self._load(fit)
            packed.remove(place)
        self._fit(fit)
        return self._load(fit)

    def _load(self, fit: Fit) -> Erasure:
        erasure, self.digests[fit.id] = load_erasure(self.place(fit), method(fit.spec.address).parts, self.model.device)
        return erasure

    def _fit(self, fit: Fit) -> None:
        """Fit and save one erasure and what the fit cost."""
        kind = method(fit.spec.address)
        concepts = fit.target.concepts if fit.target else ()

        def progress(share: float, text: str) -> None:
            if self.stop():
                raise Stopped
            self.say(f"{fit.name}: {text} {share:.0%}")

        if fit.target:
            self.say(f"{fit.name}: fitting")
        start = self.erasure(fit.before) if fit.before else None
        known = fit.before.target.concepts if fit.before and fit.before.target else ()
        new = [concept for concept in concepts if concept not in known]
        context = fit_context(self.suite, self.preset, self.model, self.sampler.dtype, self.sampler.slots, self.fit_seed, progress)
        made = kind(kind.Config.model_validate(dict(fit.spec.config_for(fit.target))))
        release_freed_memory()
        with PeakMemory(self.model.device) as memory:
            first = time.perf_counter()
            made.prepare(context, new if start else concepts)
            began = time.perf_counter()
            erasure = made.fit(context, concepts) if start is None else made.fit_after(context, start, new)
            seconds = time.perf_counter() - began
        if not isinstance(erasure, Erasure):
            raise BenchError(f"fit() returns {type(erasure).__name__}: return an Erasure (docs/add-a-method.md)")
        own = pack(erasure)
        size = len(own.tensors) / 1e6
        measured = dict(zip(FIT_COST, (seconds, memory.peak_mb, size), strict=True)) | {SHARED_SECONDS: began - first}
        self.store.write_json(f"cost/fit-{fit.id}.json", measured, replace=False)
        own.save(self.place(fit))

"""Sample rows of different methods, concepts, prompts and steps together, in UNet calls of one fixed shape.

A row is one picture under one erasure. Rows wait in a queue; every call is filled with whole rows, whichever step each is at,
and a row that ends makes room for the next (padding is left to the very end). With fixed slots, a row's bytes do not
depend on its position, its neighbours or the order.

With sharing, rows that differ in their activation edits alone are first one row without edits, at which all their detectors
look. Where one fires, a row of its own forks off, from the latent and guidance state before that step; where none ever does,
the rows *are* the un-edited one. What detectors saw in a call is read while the next one runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.diffusion.call import Bank, Call, Receipt, Task, stack_edits
from bench.diffusion.hooks import Act, hooked
from bench.diffusion.model import DiffusionModel, attention_blocks
from bench.diffusion.rows import Row, check, encode
from bench.diffusion.solvers import Solver, solver_of
from bench.errors import BenchError
from bench.interfaces import Cond, Probe


class Finished(NamedTuple):
    """Rows that ended as one."""

    rows: list[int]
    latent: Tensor | None
    """float32 [4, h, w], scaled; None where it stopped being finite."""
    step: int
    """The last step that was computed."""
    first_edit: int
    """The first step at which an activation edit changed anything, −1 if none did."""
    forked_at: int | None
    """The step at which it left a shared trajectory."""


class Sampled(NamedTuple):
    """What became of rows, in their order."""

    latents: Tensor
    """float32 [R, 4, h, w], scaled; NaN for rows that broke."""
    first_edit: Tensor
    """int64 [R]: the first step at which an activation edit changed anything, −1 if none did."""
    broken: dict[int, int]
    """Rows whose latents stopped being finite, and the step at which they did."""


@dataclass
class Counts:
    """What sampling took."""

    calls: int = 0
    steps: int = 0
    """Steps of rows."""
    slots: int = 0
    """UNet slots that rows used."""


@dataclass
class Sampler:
    """The UNet runs in `dtype`; latents, guidance and schedule stay in float32. `counts` grow with every use."""

    model: DiffusionModel
    dtype: torch.dtype
    slots: int
    compiled: bool = False
    share: bool = False
    counts: Counts = field(default_factory=Counts)

    def stream(self, rows: Sequence[Row], probes: Sequence[Probe] = (), stop: Callable[[], bool] = lambda: False) -> Iterator[Finished]:
        """Sample all rows, and tell of each as soon as it has ended, in no particular order. Once `stop()`, no more calls are made.

        `probes` see every step of every row; rows then walk in lock-step and share nothing. Raises BenchError for rows that
        need more than the call's slots, schedulers or steps that cannot be, and edits that do not fit.
        """
        if not rows:
            return
        if probes and len({row.request.steps for row in rows}) > 1:
            raise BenchError("While probes watch, rows walk in lock-step: all must have the same number of steps.")
        for own, sampler in self._apart(rows, probes):
            for done in sampler._stream([rows[index] for index in own], probes, stop):
                yield done._replace(rows=[own[index] for index in done.rows])

    def _apart(self, rows: Sequence[Row], probes: Sequence[Probe]) -> Iterator[tuple[list[int], Sampler]]:
        """Rows with edits elsewhere than at the blocks that read text share no call with others and are never compiled.

        A compiled graph has hook points at these blocks alone: with more, everybody's pictures would have other bits.
        """
        known = set(attention_blocks(self.model.unet))
        watched = [name for probe in probes for name in probe.hookpoints]
        acted = [[name for edit in row.erasure.activations for name in edit.hookpoints] for row in rows]
        inner = [self.compiled and not known.issuperset([*names, *watched]) for names in acted]
        for kind, sampler in ((False, self), (True, replace(self, compiled=False))):
            own = [index for index, other in enumerate(inner) if other is kind]
            if own:
                yield own, sampler

    def _stream(self, rows: Sequence[Row], probes: Sequence[Probe], stop: Callable[[], bool]) -> Iterator[Finished]:
        solver = solver_of(self.model.scheduler, [row.request for row in rows], self.model.device)
        check(self.model, rows, solver, self.slots)
        banks = stack_edits(rows, self.model.device)
        together = solver.lock_step or bool(probes)
        tasks = _tasks(rows, encode(self.model, rows), banks, share=self.share and not together)
        yield from self._walk(_Queue(tasks, self.slots, together), banks, solver, probes, stop)

    def _walk(
        self, queue: _Queue, banks: Sequence[Bank], solver: Solver, probes: Sequence[Probe], stop: Callable[[], bool]
    ) -> Iterator[Finished]:
        names = {name for bank in banks for name in bank.hookpoints} | {name for probe in probes for name in probe.hookpoints}
        call: Call | None = None
        unread: Receipt | None = None
        with self.acting(names, lambda name, x_in, x_out: call.act(name, x_in, x_out) if call else x_out) as unet:
            while True:
                tasks = queue.fill(call.tasks if call else []) if not stop() else []
                if call and tasks != call.tasks:
                    call.save()
                    call = None
                if tasks and call is None:
                    call = Call(self.model, tasks, banks, solver, self.dtype, self.slots, probes)
                receipt = call.run(unet) if call else None
                if receipt:
                    self.counts.calls += 1
                    self.counts.steps += len(tasks)
                    self.counts.slots += sum(task.row.slots for task in tasks)
                if unread:
                    yield from _settle(unread, queue)
                unread = receipt
                if unread is None and (stop() or not queue):
                    return

    @contextmanager
    def acting(self, names: set[str], act: Act) -> Iterator[Callable[..., Any]]:
        """The UNet as it is called, with `act` at the hook points."""
        if self.compiled:
            with self.model.compiled_unet(self.dtype).acting(names, act) as unet:
                yield unet
        else:
            with hooked(self.model.sampling_unet(self.dtype), names, act):
                yield self.model.sampling_unet(self.dtype)

    def all(self, rows: Sequence[Row], advance: Callable[[int], None] = lambda pictures: None, probes: Sequence[Probe] = ()) -> Sampled:
        """All of `stream`, in order. `advance(n)` is called when n more pictures are done."""
        latents = torch.full((len(rows), *self.model.latent_shape), torch.nan, device=self.model.device)
        first_edit = torch.full((len(rows),), -1)
        broken = {}
        for done in self.stream(rows, probes):
            if done.latent is None:
                broken.update(dict.fromkeys(done.rows, done.step))
            else:
                latents[done.rows] = done.latent
            first_edit[done.rows] = done.first_edit
            advance(len(done.rows))
        return Sampled(latents, first_edit, broken)


def _tasks(rows: Sequence[Row], conditions: Sequence[list[Cond]], banks: Sequence[Bank], share: bool) -> list[Task]:
    """A task per row; with sharing, one for all rows that are the same until an edit acts."""
    if not share:
        return [Task(row, conds, [i]) for i, (row, conds) in enumerate(zip(rows, conditions, strict=True))]
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(rows):
        quiet = all(edit.quiet_is_identity for edit in row.erasure.activations)
        same = (row.request.id, id(row.text), type(row.guidance), row.guidance.key, row.guidance.extra_texts)
        groups.setdefault(same if quiet else (i,), []).append(i)
    tasks = []
    for own in groups.values():
        if len(own) == 1:  # nobody to share with: it walks alone, edits and all
            tasks.append(Task(rows[own[0]], conditions[own[0]], own))
            continue
        plain = replace(rows[own[0]], erasure=replace(rows[own[0]].erasure, activations=()))
        edits = {i: [bank.start + number for bank in banks for number in bank.of(rows[i])] for i in own}
        watchers = {i: (rows[i], numbers) for i, numbers in edits.items() if numbers}
        tasks.append(Task(plain, conditions[own[0]], [i for i in own if i not in watchers], watchers))
    return tasks


class _Queue:
    """Tasks that wait: shared ones first, as others fork off them, then by the place of their row."""

    def __init__(self, tasks: Sequence[Task], slots: int, together: bool) -> None:
        self.slots, self.together = slots, together
        self.waiting: dict[int, list[tuple[bool, int, int, Task]]] = {}
        self.count = 0
        for task in tasks:
            self.push(task)

    def __bool__(self) -> bool:
        return any(self.waiting.values())

    def push(self, task: Task) -> None:
        """Let a task wait, among those of its width."""
        self.count += 1  # ties never reach the task itself
        first = min((*task.owners, *task.watchers))
        heapq.heappush(self.waiting.setdefault(task.row.slots, []), (not task.watchers, first, self.count, task))

    def fill(self, running: Sequence[Task]) -> list[Task]:
        """Those that go on, and whole rows from the queue until the call is full. In lock-step nobody joins or leaves midway."""
        going = [task for task in running if task.step <= task.last and (self.together or not task.dead)]
        if self.together and going:
            return going
        free = self.slots - sum(task.row.slots for task in going)
        while fitting := [own for width, own in self.waiting.items() if own and width <= free]:
            task = heapq.heappop(min(fitting))[-1]
            going.append(task)
            free -= task.row.slots
        return going


def _settle(receipt: Receipt, queue: _Queue) -> Iterator[Finished]:
    """Read a call's flags: who broke, who was edited, whose detectors fired, who has ended."""
    for r, (task, step, flags) in enumerate(zip(receipt.tasks, receipt.steps, receipt.read(), strict=True)):
        if task.dead:
            continue
        broken, changed, *fired = flags
        if changed and task.first_edit < 0:
            task.first_edit = step
        if task.watchers and any(fired):
            for fork in _forks(task, receipt, r, fired):
                queue.push(fork)
        left = [*task.owners, *task.watchers]
        task.dead = bool(broken) or step == task.last or not left
        if task.dead and left:
            yield Finished(left, None if broken else receipt.after[r], step, task.first_edit, task.forked_at)


def _forks(task: Task, receipt: Receipt, r: int, fired: Sequence[int]) -> Iterator[Task]:
    """The watchers of which a detector fired leave the shared task, from where it was before the step."""
    gone = [index for index, (_, edits) in task.watchers.items() if any(fired[edit] for edit in edits)]
    latent = receipt.before[r].clone() if gone else None  # a view would keep the whole call's
    guidance = {name: value.clone() for name, value in receipt.guidance[r].items()}
    step = receipt.steps[r]
    for index in gone:
        row, _ = task.watchers.pop(index)
        yield Task(row, task.conditions, [index], step=step, latent=latent, guidance=guidance, forked_at=step)


def sample(
    model: DiffusionModel,
    rows: Sequence[Row],
    dtype: torch.dtype,
    slots: int,
    advance: Callable[[int], None] = lambda pictures: None,
    probes: Sequence[Probe] = (),
) -> Sampled:
    """`Sampler.all` of a plain sampler: eager, nothing shared. BenchError for a row that broke."""
    found = Sampler(model, dtype, slots).all(rows, advance, probes)
    for index, step in found.broken.items():
        name = f"“{rows[index].request.prompt}” (seed {rows[index].request.seed})"
        raise BenchError(f"The latent of {name} is not finite after step {step + 1}: try another --dtype.")
    return found

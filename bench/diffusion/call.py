"""One UNet call after another over the same rows: which row each slot samples, what it sees, which edits act on it.

A call has a fixed number of slots. A row takes as many as it has conditions, all next to each other; what is left over is
padded with copies of the first slot. Everything stays on the device; what the host must know of a call comes back as one
small tensor of flags, copied while the next call runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import noise_seed
from bench.diffusion.rows import Row
from bench.diffusion.solvers import Solver, to_device
from bench.errors import BenchError
from bench.interfaces import ActivationEdit, Cond, EditBank, Probe, Slots


class EditError(BenchError):
    """An edit did what no edit may. `edits` are the ids of those that it may have been."""

    def __init__(self, message: str, edits: Iterable[int]) -> None:
        super().__init__(message)
        self.edits = frozenset(edits)


@dataclass(frozen=True, eq=False)
class Bank:
    """All activation edits of one class and bank among the rows, stacked once."""

    module: EditBank
    hookpoints: frozenset[str]
    number: dict[int, int]
    """id of an edit → its index."""
    start: int
    """How many edits there are in the banks before."""

    def of(self, row: Row) -> list[int]:
        """Indices of the row's edits here, at most one."""
        found = [self.number[id(edit)] for edit in row.erasure.activations if id(edit) in self.number]
        if len(found) > 1:
            kind = next(type(edit).__name__ for edit in row.erasure.activations if id(edit) in self.number)
            raise BenchError(f"An erasure has two {kind} parts: make one part that names both hook points.")
        return found


def stack_edits(rows: Sequence[Row], device: torch.device) -> list[Bank]:
    """The banks of all rows, in an order that does not depend on theirs."""
    edits = {id(edit): edit for row in rows for edit in row.erasure.activations}
    kinds: dict[tuple[type[ActivationEdit], str], list[ActivationEdit]] = {}
    for edit in edits.values():
        kinds.setdefault((type(edit), edit.bank), []).append(edit)
    banks: list[Bank] = []
    for (kind, _), own in sorted(kinds.items(), key=lambda item: (item[0][0].__module__, item[0][0].__qualname__, item[0][1])):
        names = frozenset(name for edit in own for name in edit.hookpoints)
        number = {id(edit): index for index, edit in enumerate(own)}
        banks.append(Bank(kind.stack(own).to(device), names, number, sum(len(bank.number) for bank in banks)))
    return banks


@dataclass(eq=False)
class Task:
    """A row on its way: where it is, and which of the sampled rows end as it does."""

    row: Row
    conditions: list[Cond]
    owners: list[int]
    """Indices of the rows that are this one whatever happens."""
    watchers: dict[int, tuple[Row, list[int]]] = field(default_factory=dict)
    """Rows that are this one until one of their edits, numbered through all banks, fires."""
    step: int = 0
    latent: Tensor | None = None
    """float32 [4, h, w] before `step`; None: the initial noise."""
    guidance: dict[str, Tensor] | None = None
    """Its guidance's state before `step`, without the row dimension."""
    banks: list[dict[str, Tensor]] | None = None
    """Its state in every bank, likewise."""
    first_edit: int = -1
    forked_at: int | None = None
    dead: bool = False
    """Nothing more is wanted of it."""

    @property
    def last(self) -> int:
        """Its last step."""
        return self.row.request.steps - 1


@dataclass(frozen=True, eq=False)
class Receipt:
    """What is kept of a call until its flags are read."""

    tasks: list[Task]
    steps: list[int]
    before: Tensor
    """float32 [R, 4, h, w]."""
    guidance: list[dict[str, Tensor]]
    """Per row, before the call."""
    after: Tensor
    flags: Tensor
    """int8 [R, 2 + edits of all banks] on the host, once `ready`: not finite, edited, fired …"""
    ready: torch.cuda.Event | None

    def read(self) -> list[list[int]]:
        """The flags; waits for the call if it is still running."""
        if self.ready is not None:
            self.ready.synchronize()
        found: list[list[int]] = self.flags.tolist()
        return found


class Call:
    """UNet calls over the same tasks, until one comes or goes."""

    def __init__(
        self, model: DiffusionModel, tasks: Sequence[Task], banks: Sequence[Bank], solver: Solver, dtype: torch.dtype, slots: int,
        probes: Sequence[Probe] = (),
    ) -> None:  # fmt: skip
        self.tasks, self.banks, self.solver, self.dtype, self.probes = list(tasks), banks, solver, dtype, probes
        self.model, self.device = model, model.device
        owner = [r for r, task in enumerate(tasks) for _ in task.conditions]
        roles = [k for task in tasks for k in task.row.roles]
        requests = [task.row.request for task in tasks]
        keys = [noise_seed(requests[r].seed, f"{requests[r].noise_key}\n{k}") for r, k in zip(owner, roles, strict=True)]
        padding = slots - len(owner)
        indices = [tasks[r].owners[0] if tasks[r].owners else -1 for r in owner] + [-1] * padding
        which = [[next(iter(bank.of(tasks[r].row)), -1) for r in owner] + [-1] * padding for bank in banks]
        first = [values + values[:1] * padding for values in (owner, roles, keys)]
        self.row_of_slot, self.role, self.key, self.index, *self.which = to_device(torch.tensor([*first, indices, *which]), self.device)
        self.editing = [max(own) >= 0 for own in which]
        self._conditions = [(r, cond) for r, task in enumerate(tasks) for cond in task.conditions]
        self._conditions += self._conditions[:1] * padding
        adapter_scales = pad_sequence([cond.adapter_scale for _, cond in self._conditions], batch_first=True, padding_value=1.0)
        self.adapter_scale = to_device(adapter_scales, self.device)
        self._variants: list[int] = []
        self._text: dict[str, Any] = {}
        self.scale = to_device(torch.tensor([request.guidance_scale for request in requests]), self.device)[:, None, None, None]
        self.groups = self._group()
        self._load()
        solver.place(requests, [task.step for task in tasks], self.device)

    def _group(self) -> list[tuple[list[int], Tensor, Tensor]]:
        """(rows, the same as [g], slots [g, K]) of the rows whose guidance combines alike."""
        first = [0]
        for task in self.tasks:
            first.append(first[-1] + len(task.conditions))
        members: dict[Any, list[int]] = {}
        for r, task in enumerate(self.tasks):
            members.setdefault((type(task.row.guidance), task.row.guidance.key, len(task.conditions)), []).append(r)
        found = []
        for rows in members.values():
            slots = torch.tensor([list(range(first[r], first[r + 1])) for r in rows])
            found.append((rows, to_device(torch.tensor(rows), self.device), to_device(slots, self.device)))
        return found

    def _load(self) -> None:
        """Bring the tasks' tensors together; a task that has none begins."""
        fresh = [task for task in self.tasks if task.latent is None]
        if fresh:
            noise = to_device(self.solver.start([task.row.request for task in fresh], self.model.latent_shape), self.device)
            for task, latent in zip(fresh, noise, strict=True):
                task.latent = latent
        self.latents = torch.stack([task.latent for task in self.tasks if task.latent is not None])
        self.step = to_device(torch.tensor([task.step for task in self.tasks]), self.device)
        self.states = []
        for rows, places, _ in self.groups:
            begin = self.tasks[rows[0]].row.guidance.init(self.latents[places])
            self.states.append(_together(begin, [self.tasks[r].guidance for r in rows]))
        watched = self._watched()
        self.watching = [bool(watched[:, bank.start : bank.start + len(bank.number)].any()) for bank in self.banks]
        self.left = to_device(watched, self.device)
        self.bank_states = []
        for b, bank in enumerate(self.banks):
            saved = [task.banks[b] if task.banks is not None else None for task in self.tasks]
            self.bank_states.append(_together(bank.module.state(len(self.tasks)), saved))

    def _watched(self) -> Tensor:
        """Bool [R, E]: which edits of all banks each row is watched for."""
        table = torch.zeros(len(self.tasks), sum(len(bank.number) for bank in self.banks), dtype=torch.bool)
        for r, task in enumerate(self.tasks):
            table[r, [edit for _, edits in task.watchers.values() for edit in edits]] = True
        return table

    def save(self) -> None:
        """Give the tasks their tensors back, so that they can join another call."""
        for r, task in enumerate(self.tasks):
            task.latent = self.latents[r]
            task.banks = [{name: value[r] for name, value in state.items()} for state in self.bank_states]
        for r, state in enumerate(self._guidance_of()):
            self.tasks[r].guidance = state

    def restart(self, latents: Sequence[Tensor], step: int) -> None:
        """Put all tasks back to a step, whatever they remember, to make the same call again."""
        self.latents = torch.stack(list(latents))
        self.step = torch.full_like(self.step, step)
        for task in self.tasks:
            task.step = step
        self.solver.place([task.row.request for task in self.tasks], [step] * len(self.tasks), self.device)

    def _guidance_of(self) -> list[dict[str, Tensor]]:
        """Per row, the state of its guidance."""
        found: list[dict[str, Tensor]] = [{} for _ in self.tasks]
        for (rows, _, _), state in zip(self.groups, self.states, strict=True):
            for i, r in enumerate(rows):
                found[r] = {name: value[i] for name, value in state.items()}
        return found

    @torch.no_grad()
    def run(self, unet: Callable[..., Any]) -> Receipt:
        """One step of every task."""
        tasks, steps, before, guidance = self.tasks, [task.step for task in self.tasks], self.latents, self._guidance_of()
        self.changed = torch.zeros(len(tasks), dtype=torch.bool, device=self.device)
        self.fired = torch.zeros_like(self.left)
        scaled, timesteps = self.solver.inputs(self.latents)
        timestep = timesteps[self.row_of_slot]
        self.at = timestep.round().long()  # tables and random draws know whole timesteps only
        out = unet(scaled[self.row_of_slot].to(self.dtype), timestep, **self._texts(), return_dict=False)[0].float()
        combined = torch.empty_like(self.latents)
        for g, (rows, places, slots) in enumerate(self.groups):
            guide = tasks[rows[0]].row.guidance
            combined[places], self.states[g] = guide.combine(out[slots], self.step[places], self.scale[places], self.states[g])
        self.latents = self.solver.advance(self.latents, combined)
        self.step = self.step + 1
        for task in tasks:
            task.step += 1
        return Receipt(tasks, steps, before, guidance, self.latents, *self._flags())

    def _flags(self) -> tuple[Tensor, torch.cuda.Event | None]:
        broken = ~self.latents.flatten(1).isfinite().all(1)
        flags = torch.cat([broken[:, None], self.changed[:, None], self.fired], 1).to(torch.int8)
        self.left = self.left & ~self.fired
        if self.device.type != "cuda":
            return flags.cpu(), None
        host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True).copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    def _texts(self) -> dict[str, Any]:
        """What the UNet is told of the slots' texts, in the model's dtype; made anew only where a row's text changes."""
        variants = [int(cond.variant_at[self.tasks[r].step]) if len(cond.embeds) > 1 else 0 for r, cond in self._conditions]
        if variants != self._variants:
            pairs = [(cond, v) for (_, cond), v in zip(self._conditions, variants, strict=True)]
            states = torch.stack([cond.embeds[v] for cond, v in pairs]).to(self.device, self.dtype)
            added = {name: torch.stack([cond.added[name][v] for cond, v in pairs]).to(states) for name in self.model.added}
            sizes = [(self.tasks[r].row.request.height, self.tasks[r].row.request.width) for r, _ in self._conditions]
            self._variants, self._text = variants, self.model.unet_texts(states, added, sizes)
        return self._text

    def act(self, name: str, x_in: Tensor, x_out: Tensor) -> Tensor:
        """What the block `name` puts out instead of `x_out`."""
        for b, bank in enumerate(self.banks):
            if name not in bank.hookpoints:
                continue
            if self.watching[b]:
                own = slice(bank.start, bank.start + len(bank.number))
                wanted = self.left[self.row_of_slot, own]
                self.fired[:, own] |= self._by_row(bank.module.detect(name, x_in, x_out, self.at, wanted) & wanted)
            if self.editing[b]:
                x_out = self._edited(b, name, x_in, x_out)
        for probe in self.probes:
            if name in probe.hookpoints:
                probe.see(name, x_in, x_out, self.tasks[0].step, self.index, self.role)
        return x_out

    def _edited(self, b: int, name: str, x_in: Tensor, x_out: Tensor) -> Tensor:
        slots = Slots(self.at, self.which[b], self.key, self.row_of_slot, self.adapter_scale)
        new = self.banks[b].module.edit(name, x_in, x_out, slots, self.bank_states[b])
        if (new.shape, new.dtype) != (x_out.shape, x_out.dtype):
            raise EditError(
                f"{type(self.banks[b].module).__name__} makes {list(new.shape)} {new.dtype} of {list(x_out.shape)} {x_out.dtype} at {name}:"
                " an edit must keep shape and dtype.",
                self.banks[b].number,
            )
        self.changed = self.changed | self._by_row((new != x_out).flatten(1).any(1))
        # Kernels go by memory layout: another one than the block's own would change the bits of untouched neighbours.
        return new if new.stride() == x_out.stride() else torch.empty_like(x_out).copy_(new)

    def _by_row(self, flags: Tensor) -> Tensor:
        """Bool [S, …] → [R, …]: in any slot of a row."""
        counts = torch.zeros(len(self.tasks), *flags.shape[1:], dtype=torch.int32, device=self.device)
        return counts.index_add_(0, self.row_of_slot, flags.int()) > 0


def _together(begin: dict[str, Tensor], saved: Sequence[dict[str, Tensor] | None]) -> dict[str, Tensor]:
    """One state of all rows: what was saved of a row, else its beginning."""
    return {name: torch.stack([value[i] if own is None else own[name] for i, own in enumerate(saved)]) for name, value in begin.items()}

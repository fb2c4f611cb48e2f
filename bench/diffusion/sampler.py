"""Sample rows of different methods, concepts and prompts together, in UNet calls of one fixed shape.

A row is one picture under one erasure. Rows are packed whole into batches of `slots` UNet slots (a row with guidance
takes two, one with SLD three); the last batch is padded with copies of its first slot. All rows of a batch walk the
schedule in lock-step. With fixed slots, a row's bytes do not depend on its position, its neighbours or the order.
Activation edits act through forward hooks; probes look at what they leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.diffusion.guidance import ClassifierFree
from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import initial_noise, noise_seed
from bench.diffusion.schedule import DDIMSchedule
from bench.diffusion.text import PlainText
from bench.errors import BenchError
from bench.interfaces import ActivationEdit, Cond, EditBank, Erasure, Guidance, Probe
from bench.types import GenerationRequest

_PLAIN_TEXT, _PLAIN_GUIDANCE = PlainText(), ClassifierFree()


@dataclass(frozen=True, eq=False)
class Row:
    """One picture to sample. The erasure's weights, if any, must be swapped in by the caller (`DiffusionModel.weights`)."""

    request: GenerationRequest
    erasure: Erasure

    @property
    def guidance(self) -> Guidance:
        """How its conditions are combined."""
        return self.erasure.guidance or _PLAIN_GUIDANCE

    @property
    def slots(self) -> int:
        """UNet slots a step: unconditional, conditional, extra texts."""
        return 2 + len(self.guidance.extra_texts)


class Sampled(NamedTuple):
    """What became of rows, in their order."""

    latents: Tensor
    """float32 [R, 4, h, w], scaled."""
    first_edit: Tensor
    """int64 [R]: the first step at which an activation edit changed anything, −1 if none did."""


def sample(
    model: DiffusionModel,
    rows: Sequence[Row],
    dtype: torch.dtype,
    slots: int,
    advance: Callable[[int], None] = lambda pictures: None,
    probes: Sequence[Probe] = (),
) -> Sampled:
    """Sample all rows. `advance(n)` is called when n more pictures are done; `probes` see every step of every row.

    The UNet runs in `dtype`; latents, guidance and schedule stay in float32. Raises BenchError where a row needs more
    than `slots` slots, where rows differ in steps, or where an edit's tables are for other timesteps.
    """
    if not rows:
        return Sampled(torch.empty(0, *model.latent_shape), torch.empty(0, dtype=torch.int64))
    steps = {row.request.steps for row in rows}
    if len(steps) > 1:
        raise BenchError(f"Rows with {sorted(steps)} steps cannot be sampled together: use one --steps for a run.")
    schedule = DDIMSchedule.of(model.scheduler, steps.pop())
    for edit in {id(edit): edit for row in rows for edit in row.erasure.activations}.values():
        _check_timesteps(edit, schedule.timesteps)
    conditions = _encode(model, rows, len(schedule.timesteps))
    unet = model.sampling_unet(dtype)
    found = []
    for start, stop in _pack([row.slots for row in rows], slots):
        batch = _Batch(model, rows[start:stop], conditions[start:stop], dtype, slots, start)
        found.append((_walk(unet, batch, schedule, probes), batch.first_edit))
        advance(stop - start)
    return Sampled(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _check_timesteps(edit: ActivationEdit, timesteps: Tensor) -> None:
    """Refuse an edit whose tables were made for timesteps far from those of the sampling."""
    if edit.timesteps is None:
        return
    own = edit.timesteps.cpu().sort().values
    reach = float(own.diff().max()) / 2 if len(own) > 1 else 0.0
    distance, worst = (timesteps[:, None] - own).abs().min(1).values.max(0)
    if float(distance) > reach:
        raise BenchError(
            f"The {type(edit).__name__} edit has statistics of {len(own)} steps, none near timestep {int(timesteps[worst])} of these"
            f" {len(timesteps)}: gather them for {len(timesteps)} steps (python -m bench train-sae --help) or sample with {len(own)}."
        )


def _encode(model: DiffusionModel, rows: Sequence[Row], steps: int) -> list[list[Cond]]:
    """The conditions of each row; each erasure encodes its distinct texts in one call."""
    erasures = {id(row.erasure): row.erasure for row in rows}
    tables: dict[int, tuple[Cond, dict[str, Cond], list[Cond]]] = {}
    for key, erasure in erasures.items():
        edit = erasure.text or _PLAIN_TEXT
        prompts = list(dict.fromkeys(row.request.prompt for row in rows if row.erasure is erasure))
        extra = list((erasure.guidance or _PLAIN_GUIDANCE).extra_texts)
        conditional = edit.encode(model, prompts, "conditional", steps)
        tables[key] = (
            edit.encode(model, [""], "unconditional", steps)[0],
            dict(zip(prompts, conditional, strict=True)),
            edit.encode(model, extra, "extra", steps) if extra else [],
        )
    found = []
    for row in rows:
        unconditional, by_prompt, extra_conds = tables[id(row.erasure)]
        found.append([unconditional, by_prompt[row.request.prompt], *extra_conds])
    return found


def _pack(widths: Sequence[int], slots: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive rows whose slots fit in one call."""
    if max(widths) > slots:
        raise BenchError(f"A picture of this method needs {max(widths)} UNet slots, a call has {slots}: raise --batch-size.")
    start, used = 0, 0
    for index, width in enumerate(widths):
        if used + width > slots:
            yield start, index
            start, used = index, 0
        used += width
    yield start, len(widths)


class _Batch:
    """Rows laid out in slots: which row each slot samples, which text it sees, which rows share a guidance."""

    def __init__(
        self, model: DiffusionModel, rows: Sequence[Row], conditions: Sequence[Sequence[Cond]], dtype: torch.dtype, slots: int, start: int
    ) -> None:
        """`start` is the number of the first row among all that are sampled."""
        device = model.device
        self.dtype, self.slots = dtype, slots
        self.latents = initial_noise([row.request for row in rows], model.latent_shape).to(device)
        self.scale = torch.tensor([row.request.guidance_scale for row in rows], device=device)[:, None, None, None]
        owner = [r for r, conds in enumerate(conditions) for _ in conds]
        self._conds = [cond for conds in conditions for cond in conds]
        roles = [k for conds in conditions for k in range(len(conds))]
        padding = slots - len(owner)
        self.row = torch.tensor([start + r for r in owner] + [-1] * padding, device=device)
        self.role = torch.tensor(roles + roles[:1] * padding, device=device)
        self.row_of_slot = torch.tensor(owner + owner[:1] * padding, device=device)
        self._conds += self._conds[:1] * padding
        self._constant = all(len(cond.embeds) == 1 for cond in self._conds)
        self._embeds: Tensor | None = None
        self.groups = self._group(rows, conditions, device)
        self.edits = _stack_edits(rows, owner, slots, device)
        keys = [noise_seed(rows[r].request.seed, f"{rows[r].request.noise_key}\n{k}") for r, k in zip(owner, roles, strict=True)]
        self.key = torch.tensor(keys + keys[:1] * padding, device=device)
        self.first_edit = torch.full([len(rows)], -1, device=device)

    def embeds(self, step: int) -> Tensor:
        """[slots, L, D] in the model's dtype."""
        if self._embeds is None or not self._constant:
            states = torch.stack([cond.embeds[int(cond.variant_at[step])] for cond in self._conds])
            self._embeds = states.to(self.latents.device, self.dtype)
        return self._embeds

    def note_edits(self, changed: Tensor, step: int) -> None:
        """`changed` bool [slots]: whether an edit changed a slot at this step."""
        touched = torch.zeros_like(self.first_edit).index_add_(0, self.row_of_slot, changed.long()) > 0
        self.first_edit = torch.where((self.first_edit < 0) & touched, step, self.first_edit)

    @staticmethod
    def _group(rows: Sequence[Row], conditions: Sequence[Sequence[Cond]], device: torch.device) -> list[tuple[Guidance, Tensor, Tensor]]:
        """(guidance, rows [g], slots [g, K]) of the rows that combine alike."""
        first = [0]
        for conds in conditions:
            first.append(first[-1] + len(conds))
        members: dict[Any, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault((type(row.guidance), row.guidance.key, row.slots), []).append(index)
        return [
            (
                rows[indices[0]].guidance,
                torch.tensor(indices, device=device),
                torch.tensor([list(range(first[i], first[i + 1])) for i in indices], device=device),
            )
            for indices in members.values()
        ]


def _stack_edits(rows: Sequence[Row], owner: Sequence[int], slots: int, device: torch.device) -> list[tuple[EditBank, set[str], Tensor]]:
    """(bank, hook points, which [slots]) per class and bank of activation edits; a row has at most one edit in each."""
    kinds = {(type(edit), edit.bank) for row in rows for edit in row.erasure.activations}
    banks = []
    for kind, bank in sorted(kinds, key=lambda k: (k[0].__module__, k[0].__qualname__, k[1])):
        edits: list[ActivationEdit] = []
        number: dict[int, int] = {}
        which = [-1] * slots
        for slot, index in enumerate(owner):
            for edit in rows[index].erasure.activations:
                if type(edit) is kind and edit.bank == bank:
                    if which[slot] >= 0:
                        raise BenchError(f"An erasure has two {kind.__name__} parts: make one part that names both hook points.")
                    if id(edit) not in number:
                        number[id(edit)] = len(edits)
                        edits.append(edit)
                    which[slot] = number[id(edit)]
        hookpoints = {name for edit in edits for name in edit.hookpoints}
        banks.append((kind.stack(edits).to(device), hookpoints, torch.tensor(which, device=device)))
    return banks


@torch.no_grad()
def _walk(unet: nn.Module, batch: _Batch, schedule: DDIMSchedule, probes: Sequence[Probe]) -> Tensor:
    """All steps of one batch; no value is read back from the device in between."""
    latents, device = batch.latents, batch.latents.device
    states = [guidance.init(latents[rows]) for guidance, rows, _ in batch.groups]
    timesteps = schedule.timesteps.to(device)
    with ExitStack() as stack:
        now = _Now(0, timesteps[:1].expand(batch.slots))
        for bank, hookpoints, which in batch.edits:
            stack.enter_context(_hooked(unet, hookpoints, partial(_edit, batch, bank, which, now)))
        for probe in probes:  # after the edits: hooks run in the order of their registration
            stack.enter_context(_hooked(unet, set(probe.hookpoints), partial(_show, batch, probe, now)))
        for step in range(len(timesteps)):
            now.step, now.timestep = step, timesteps[step].expand(batch.slots)
            x = latents[batch.row_of_slot].to(batch.dtype)
            out = unet(x, now.timestep, encoder_hidden_states=batch.embeds(step)).sample.float()
            combined = torch.empty_like(latents)
            for index, (guidance, rows, members) in enumerate(batch.groups):
                combined[rows], states[index] = guidance.combine(out[members], step, batch.scale[rows], states[index])
            latents = float(schedule.x_scale[step]) * latents + float(schedule.out_scale[step]) * combined
    return latents


@dataclass
class _Now:
    """Where the walk is."""

    step: int
    timestep: Tensor


def _edit(batch: _Batch, bank: EditBank, which: Tensor, now: _Now, name: str, x_in: Tensor, x_out: Tensor) -> Tensor:
    new = bank.edit(name, x_in, x_out, now.timestep, which, batch.key, batch.row_of_slot)
    batch.note_edits((new != x_out).flatten(1).any(1), now.step)
    # Kernels go by memory layout: another one than the block's own would change the bits of untouched neighbours.
    return new if new.stride() == x_out.stride() else torch.empty_like(x_out).copy_(new)


def _show(batch: _Batch, probe: Probe, now: _Now, name: str, x_in: Tensor, x_out: Tensor) -> None:
    probe.see(name, x_in, x_out, now.step, batch.row, batch.role)


@contextmanager
def _hooked(unet: nn.Module, hookpoints: set[str], act: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `act(name, input, output)` at every hook point; what it returns, if anything, replaces the output."""

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x_in = args[0] if args else kwargs["hidden_states"]
        new = act(name, x_in, output[0] if isinstance(output, tuple) else output)
        if new is None:
            return output
        return (new, *output[1:]) if isinstance(output, tuple) else new

    modules = dict(unet.named_modules())
    missing = sorted(hookpoints - modules.keys())
    if missing:
        raise BenchError(f'The UNet has no module "{missing[0]}": the edit was made for another model.')
    handles = [modules[name].register_forward_hook(partial(hook, name), with_kwargs=True) for name in sorted(hookpoints)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

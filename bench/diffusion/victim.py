"""What an erased model predicts, with a gradient to the prompt: the same path as the sampler's, edits and all.

A victim's rows are fixed: one erasure and guidance each. Noise predictions are those of single steps, from latents that the
attacker makes; what an edit remembers of a picture (an open gate, a momentum) is as before the first step, so that an edit acts
here if this step alone makes it act.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from bench.diffusion.call import stack_edits
from bench.diffusion.guidance import Unguided
from bench.diffusion.hooks import Act, hooked
from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import noise_seed
from bench.diffusion.rows import Row
from bench.diffusion.schedule import DDIMSchedule
from bench.diffusion.soft import SoftText
from bench.diffusion.solvers import to_device
from bench.errors import BenchError
from bench.interfaces import Cond, EditBank, Guidance, Slots

Gradient = Literal["adaptive", "published"]
"""Through activation edits, each at its own timestep; or as SAeUron's attack has it: the gradient ends at their hook points, and
the k-th of the attack's timesteps, in ascending order, is told to them as the k-th sampling step, the noisiest first."""
LARGE = 48 * 48
"""Positions of a latent from which on activations are computed again rather than kept."""
_CONDITIONAL = Unguided()


class NoGradientError(BenchError):
    """An erasure that no gradient goes through."""


class Victim:
    """Rows that are attacked together. Their weights, if any, must be swapped in by the caller, as for the sampler.

    BenchError for a model with two text encoders.
    """

    def __init__(self, model: DiffusionModel, rows: Sequence[Row], dtype: torch.dtype, gradient: Gradient = "adaptive") -> None:
        if model.text_encoder_2 is not None:
            raise BenchError(
                "This model has two text encoders, an attack that follows the denoising loss needs a model with one: leave it out."
                " Attacks by prompts alone (random, seed-search, paraphrase, --attack-prompts) go on."
            )
        self.model, self.rows, self.dtype, self.gradient = model, list(rows), dtype, gradient
        self.device = model.device
        self.banks = stack_edits(self.rows, self.device)
        self.schedule = DDIMSchedule.of(model.scheduler, self.rows[0].request.steps)
        self.alphas = model.scheduler.alphas_cumprod.to(self.device, torch.float32)
        self.guides = [_guide(row) for row in self.rows]
        self.keys = [noise_seed(row.request.seed, f"{row.request.noise_key}\n1") for row in self.rows]
        self._others: dict[int, list[Cond]] = {}
        self._differentiable: set[tuple[EditBank, str]] = set()

    @property
    def steps(self) -> int:
        """Of sampling."""
        return len(self.schedule.timesteps)

    def spread(self, count: int) -> list[int]:
        """`count` timesteps in the middles of equal parts of the trained ones, ascending: 10, 30, … 990 for 50 of 1000."""
        return [(2 * k + 1) * len(self.alphas) // (2 * count) for k in range(count)]

    def noised(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """`√ᾱ_t x + √(1 − ᾱ_t) ε` of [n, 4, h, w], timesteps int64 [n] on the CPU."""
        alpha = self.alphas[to_device(timesteps, self.device)][:, None, None, None]
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def target(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """What `predict` should say of `noised`, as the model was trained: the noise, or `√ᾱ_t ε − √(1 − ᾱ_t) x` (v prediction)."""
        if self.model.scheduler.config.prediction_type != "v_prediction":
            return noise
        alpha = self.alphas[to_device(timesteps, self.device)][:, None, None, None]
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def predict(self, which: Sequence[int], texts: Sequence[str], noisy: Tensor, timesteps: Tensor, place: int = 0) -> Tensor:
        """Predictions float32 [n, 4, h, w], of noise or velocity, of rows `which` with other prompts.

        At noisy latents [n, 4, h, w] and timesteps int64 [n] on the CPU. Where a row has guidance of its own, or a changed
        unconditional text, with the request's guidance scale; else the conditional prediction, as UnlearnDiffAtk's loss. `place` is
        the timestep's in the attack's list (see `Gradient`).
        """
        step = self._nearest(timesteps)
        timesteps = to_device(timesteps, self.device)
        conditions = self._conditions(which, texts)
        owner = torch.tensor([r for r, own in enumerate(conditions) for _ in own], device=self.device)
        flat = [(r, cond) for r, own in enumerate(conditions) for cond in own]
        states = torch.stack([cond.embeds[int(cond.variant_at[step[r]])] for r, cond in flat]).to(self.device, self.dtype)
        scale = pad_sequence([cond.adapter_scale for _, cond in flat], batch_first=True, padding_value=1.0).to(self.device)
        told = self._told(timesteps, place)[owner]
        key = torch.tensor([self.keys[which[r]] for r, _ in flat], device=self.device)
        slots = [Slots(told, own, key, owner, scale) for own in self._edits(which, flat)]
        sizes = [(self.rows[which[r]].request.height, self.rows[which[r]].request.width) for r, _ in flat]
        out = self._unet(noisy[owner], timesteps[owner], self.model.unet_texts(states, {}, sizes), slots, len(which))
        found = self._combined(out, which, [len(own) for own in conditions], torch.tensor(step, device=self.device), noisy)
        if torch.is_grad_enabled() and any(isinstance(text, SoftText) and text.embeds.requires_grad for text in texts):
            self._require_path(out, found, type(self.guides[which[0]]).__name__)
        return found

    @staticmethod
    def _require_path(out: Tensor, found: Tensor, guidance: str) -> None:
        """NoGradientError for predictions that are nothing to the texts any more."""
        if not out.requires_grad:
            raise NoGradientError("No gradient goes around the hook points, which are at the end of all that texts change.")
        if not found.requires_grad:
            raise NoGradientError(f"No gradient goes through {guidance}: it detaches the predictions.")

    def _nearest(self, timesteps: Tensor) -> list[int]:
        """The sampling step of each timestep."""
        found: list[int] = (self.schedule.timesteps[None] - timesteps[:, None]).abs().argmin(1).tolist()
        return found

    def _told(self, timesteps: Tensor, place: int) -> Tensor:
        """What edits are told."""
        if self.gradient == "adaptive":
            return timesteps
        return self.schedule.timesteps[min(place, self.steps - 1)].to(timesteps).expand_as(timesteps)

    def _conditions(self, which: Sequence[int], texts: Sequence[str]) -> list[list[Cond]]:
        """Of each row, in the order of its guidance; those of one text edit are encoded together."""
        groups: dict[int, list[int]] = {}
        for place, r in enumerate(which):
            groups.setdefault(id(self.rows[r].text), []).append(place)
        found: list[list[Cond]] = [[] for _ in which]
        for places in groups.values():
            edit = self.rows[which[places[0]]].text
            conds = edit.encode(self.model, [texts[place] for place in places], "conditional", self.steps)
            for place, cond in zip(places, conds, strict=True):
                r, text = which[place], texts[place]
                if torch.is_grad_enabled() and isinstance(text, SoftText) and text.embeds.requires_grad and not cond.embeds.requires_grad:
                    raise NoGradientError(
                        f"No gradient goes through {type(edit).__name__}: it detaches what PlainText encodes, or encodes a text of its own."
                    )
                others = self._other(r) if self.guides[r] is not _CONDITIONAL else []
                others = [own if len(own.adapter_scale) else replace(own, adapter_scale=cond.adapter_scale) for own in others]
                found[place] = [*others[:1], cond, *others[1:]]
        return found

    def _other(self, r: int) -> list[Cond]:
        """The unconditional text, then the guidance's extra ones, which no attack changes."""
        row = self.rows[r]
        if r not in self._others:
            with torch.no_grad():
                extra = row.guidance.extra_texts
                unconditional = row.text.encode(self.model, [""], "unconditional", self.steps)
                self._others[r] = [*unconditional, *(row.text.encode(self.model, list(extra), "extra", self.steps) if extra else [])]
        return self._others[r]

    def _edits(self, which: Sequence[int], flat: Sequence[tuple[int, Cond]]) -> list[Tensor]:
        """Per bank int64 [S], the index of each slot's edit."""
        own = [[next(iter(bank.of(self.rows[r])), -1) for r in which] for bank in self.banks]
        return [torch.tensor([edits[r] for r, _ in flat], device=self.device) for edits in own]

    def _unet(self, noisy: Tensor, timesteps: Tensor, texts: dict[str, Any], slots: Sequence[Slots], rows: int) -> Tensor:
        unet, names = self.model.sampling_unet(self.dtype), {name for bank in self.banks for name in bank.hookpoints}
        states = [bank.module.state(rows) for bank in self.banks]
        before: dict[tuple[int, str], dict[str, Tensor]] = {}

        def act(name: str, x_in: Tensor, x_out: Tensor, again: bool = False) -> Tensor:
            for k, (bank, own) in enumerate(zip(self.banks, slots, strict=True)):
                if name not in bank.hookpoints:
                    continue
                before.setdefault((k, name), dict(states[k]))
                state = dict(before[k, name]) if again else states[k]
                if self.gradient == "adaptive":
                    self._require_gradient(bank.module, name, x_in, x_out, own, state)
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.gradient == "adaptive"):
                    x_out = bank.module.edit(name, x_in, x_out, own, state)
            return x_out

        large = noisy[0, 0].numel() >= LARGE
        if large:
            unet.enable_gradient_checkpointing(_recomputing(unet, names, partial(act, again=True)))
        try:
            with hooked(unet, names, act):
                found: Tensor = unet(noisy.to(self.dtype), timesteps, **texts, return_dict=False)[0].float()
        finally:
            if large:
                unet.disable_gradient_checkpointing()
        return found

    def _require_gradient(self, module: EditBank, name: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> None:
        """Once per hook point, as it reads a number from the device: whether an edit passes anything on of the slots that it edits."""
        own = slots.which >= 0
        if not x_out.requires_grad or (module, name) in self._differentiable:
            return
        self._differentiable.add((module, name))
        # Not packed away where activations are made again, as this graph is gone before.
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
            leaf = x_out.detach().requires_grad_()
            edited = module.edit(name, x_in.detach(), leaf, slots, dict(state))[own]
            gradient = torch.autograd.grad(edited.sum(), leaf, allow_unused=True)[0] if edited.requires_grad else None
        if own.any() and (gradient is None or not gradient[own].any()):
            raise NoGradientError(f"No gradient goes through {type(module).__name__}: it detaches what {name} puts out.")

    def _combined(self, out: Tensor, which: Sequence[int], counts: Sequence[int], step: Tensor, noisy: Tensor) -> Tensor:
        """The guidance of each row over its slots, those of one kind together."""
        first = [sum(counts[:place]) for place in range(len(counts))]
        groups: dict[Any, list[int]] = {}
        for place, r in enumerate(which):
            groups.setdefault((type(self.guides[r]), self.guides[r].key, counts[place]), []).append(place)
        found: list[Tensor | None] = [None] * len(which)
        for places in groups.values():
            guide = self.guides[which[places[0]]]
            eps = torch.stack([out[first[place] : first[place] + counts[place]] for place in places])
            scales = [self.rows[which[place]].request.guidance_scale for place in places]
            scale = torch.tensor(scales, device=self.device)[:, None, None, None]
            combined, _ = guide.combine(eps, step[places], scale, guide.init(noisy[places]))
            for place, own in zip(places, combined, strict=True):
                found[place] = own
        return torch.stack([own for own in found if own is not None])


def _recomputing(unet: torch.nn.Module, names: set[str], act: Act) -> Any:
    """Checkpoints of diffusers' blocks that are computed again with what acts within them, which is long gone by then."""

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), hooked(unet, names, act)

    return lambda module, *args: checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)


def _guide(row: Row) -> Guidance:
    """What the loss combines a row's predictions with: the conditional one alone where guidance is no part of the erasure."""
    text = row.erasure.text
    acts = row.erasure.guidance is not None or (text is not None and text.unconditional_only)
    return row.guidance if acts and row.guided else _CONDITIONAL

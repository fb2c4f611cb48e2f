"""Tables of many edits gated by SAE latents, and how a call looks them up.

Tables are [H, T, F]: hook points, steps of the statistics, latents chosen at a step (padded with infinite thresholds). A
second set, the gate, says *whether* a picture shows the concept, the first *where*: until a gate latent exceeds its threshold
anywhere in a picture, in any half and at any hook point, nothing is edited; from then on everything is, to the end.
Edits of a class are one module: every slot looks its own tables up, no loop over rows or latents.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bench.api import ActivationEdit, BenchError, EditBank, Slots
from methods.sae.autoencoder import SparseAutoencoder, check_width, load_sae, sae_digest


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentEdit(ActivationEdit):
    """An edit gated by SAE latents. `saes` are folders, one per hook point, `digests` theirs."""

    quiet_is_identity: ClassVar[bool] = True

    hookpoints: tuple[str, ...]
    saes: tuple[str, ...]
    digests: tuple[str, ...]
    timesteps: Tensor
    """int64 [T]."""
    latents: Tensor
    """int64 [H, T, F]."""
    thresholds: Tensor
    """float32 [H, T, F]."""
    gate_latents: Tensor
    """int64 [H, T, G]; G = 0: the gate is always open."""
    gate_thresholds: Tensor
    """float32 [H, T, G]."""

    @property
    def bank(self) -> str:
        """SAEs of one folder share a bank, as no two of them are at one hook point."""
        return str(Path(self.saes[0]).parent)

    @classmethod
    @abstractmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> LatentBank:
        """See `ActivationEdit.stack`."""

    def __post_init__(self) -> None:
        """The erasure was fitted with the SAEs of these digests: others would make it another erasure."""
        for folder, digest in zip(self.saes, self.digests, strict=True):
            if sae_digest(Path(folder)) != digest:
                raise BenchError(f"The SAE in {folder} has changed since this erasure was fitted: fit it again.")


class Found(NamedTuple):
    """What a bank sees in a call."""

    tokens: Tensor
    """[S, P, C] as the SAE reads them (`SparseAutoencoder.tokens`)."""
    z: Tensor
    """float32 [S, P, F], the TopK activations of each slot's own latents where they are above their thresholds."""
    fires: Tensor
    """bool [S, P, F]: above the threshold, behind an open gate."""
    latents: Tensor
    """int64 [S, F]."""
    place: tuple[Tensor, Tensor]
    """(edit, step) int64 [S] of each slot in the tables."""
    is_open: Tensor
    """bool [S]: whether the slot's gate is open."""
    slack: Tensor | None = None
    """float32 [S, P, F], zero, with the gradient that `fires` would have if its thresholds were sigmoids. None where none is wanted."""


class LatentBank(EditBank):
    """Tables of many edits whose SAEs are of one folder (`LatentEdit.bank`)."""

    timesteps: Tensor
    latents: Tensor
    thresholds: Tensor
    gate_latents: Tensor
    gate_thresholds: Tensor
    gated: Tensor
    present: Tensor
    restless: Tensor

    def __init__(self, edits: Sequence[LatentEdit]) -> None:
        super().__init__()
        self.edits = edits
        self.saes: dict[str, str] = {}
        for edit in edits:
            for name, folder in zip(edit.hookpoints, edit.saes, strict=True):
                self.saes[name] = folder
        steps = max(len(edit.timesteps) for edit in edits)
        self.register_buffer("timesteps", torch.stack([_pad(edit.timesteps, (steps,), -(10**6)) for edit in edits]))
        self.names = sorted(self.saes)
        for name in ("latents", "thresholds", "gate_latents", "gate_thresholds"):
            self.register_buffer(name, self._table(name, torch.inf if name.endswith("thresholds") else 0))
        self.register_buffer("gated", torch.tensor([edit.gate_latents.shape[-1] > 0 for edit in edits]))
        self.register_buffer("present", torch.tensor([[name in edit.hookpoints for edit in edits] for name in self.names]))
        """Bool [H, E]: which edits act at which hook points."""
        self.register_buffer("restless", torch.zeros(len(edits), dtype=torch.bool))
        """Bool [E]: edits that change every picture behind an open gate, whatever fires."""
        self.loaded: dict[str, SparseAutoencoder] = {}

    def _table(self, field: str, empty: float) -> Tensor:
        """[hook points, edits, T, F]; an edit without a hook point has an empty row there."""
        own = [getattr(edit, field) for edit in self.edits]
        shape = (max(t.shape[1] for t in own), max(t.shape[2] for t in own))
        rows = [
            torch.stack([
                _pad(table[edit.hookpoints.index(name)], shape, empty) if name in edit.hookpoints
                else torch.full(shape, empty, dtype=table.dtype)
                for edit, table in zip(self.edits, own, strict=True)
            ])
            for name in self.names
        ]  # fmt: skip
        return torch.stack(rows)

    def sae(self, hookpoint: str) -> SparseAutoencoder:
        """The SAE of a hook point, on the bank's device."""
        if hookpoint not in self.loaded:  # its files are looked at once a bank, not once a step
            self.loaded[hookpoint] = load_sae(Path(self.saes[hookpoint]), self.timesteps.device)
        return self.loaded[hookpoint]

    def tokens(self, hookpoint: str, x_in: Tensor, x_out: Tensor) -> Tensor:
        """[S, P, C]. BenchError if the block's channels are not the SAE's."""
        config = self.sae(hookpoint).config
        check_width(hookpoint, config, x_out.shape[1])
        if config.residual and x_in.shape != x_out.shape:
            raise BenchError(
                f"The SAE for {hookpoint} reads output − input, but the block makes {list(x_out.shape[1:])} of {list(x_in.shape[1:])}:"
                " use it at the block that it was trained at."
            )
        return self.sae(hookpoint).tokens(x_in, x_out)

    def state(self, rows: int) -> dict[str, Tensor]:
        """Whether each row's gate has opened."""
        return {"open": torch.zeros(rows, dtype=torch.bool, device=self.timesteps.device)}

    def find(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor] | None) -> Found:
        """What each slot's own latents say. With `state`, what fires behind a closed gate does not count."""
        tokens, hook, edit = self.tokens(hookpoint, x_in, x_out), self.names.index(hookpoint), slots.which.clamp(min=0)
        place = edit, (self.timesteps[edit] - slots.timestep[:, None]).abs().argmin(1)
        latents, thresholds = self.latents[hook][place], self.thresholds[hook][place]
        gate_latents, gate_thresholds = self.gate_latents[hook][place], self.gate_thresholds[hook][place]
        if state is not None:  # an open gate stays open: it need not be looked at
            gate_thresholds = gate_thresholds.masked_fill(state["open"][slots.row][:, None], torch.inf)
        above = torch.cat([thresholds, gate_thresholds], 1).masked_fill((slots.which < 0)[:, None], torch.inf)
        z = self.sae(hookpoint).exceeding(tokens, torch.cat([latents, gate_latents], 1), above)
        fires, seen = (z > above[:, None, :]).split([latents.shape[1], gate_latents.shape[1]], 2)
        is_open = torch.ones_like(slots.which, dtype=torch.bool)
        if state is not None:
            now = torch.zeros_like(state["open"]).index_put((slots.row,), seen.flatten(1).any(1), accumulate=True)
            state["open"] = state["open"] | now
            is_open = state["open"][slots.row] | ~self.gated[edit]
        own = z[..., : latents.shape[1]]
        slack = None
        if torch.is_grad_enabled() and z.requires_grad:
            gate = _soft(z[..., latents.shape[1] :], gate_thresholds).flatten(1)
            # A latent that fires behind an open gate stops acting where either is missed.
            is_on = _soft(own, thresholds) * (gate.amax(1) if gate.shape[1] else torch.ones_like(own[:, 0, 0]))[:, None, None]
            slack = torch.where(fires & is_open[:, None, None], is_on - is_on.detach(), 0)
        return Found(tokens, own, fires & is_open[:, None, None], latents, place, is_open, slack)

    def detect(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: Tensor, wanted: Tensor) -> Tensor:
        """See `EditBank.detect`: the gate opens or, without one, a latent fires."""
        tokens, hook = self.tokens(hookpoint, x_in, x_out), self.names.index(hookpoint)
        edit = torch.arange(len(self.timesteps), device=timestep.device).expand(len(timestep), -1)
        place = edit, (self.timesteps - timestep[:, None, None]).abs().argmin(2)
        latents = torch.cat([self.latents[hook][place], self.gate_latents[hook][place]], 2)
        is_gate = torch.arange(latents.shape[2], device=latents.device) >= self.latents.shape[-1]
        thresholds = torch.cat([self.thresholds[hook][place], self.gate_thresholds[hook][place]], 2)
        above = thresholds.masked_fill(~wanted[..., None] | (is_gate != self.gated[:, None]), torch.inf)
        z = self.sae(hookpoint).exceeding(tokens, latents.flatten(1), above.flatten(1))
        fired = (z > above.flatten(1)[:, None, :]).any(1).unflatten(1, above.shape[1:]).any(2)
        return fired | (self.restless & self.present[hook] & ~self.gated)

    def detected(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: Tensor, which: Tensor) -> Tensor:
        """Mask [S, H, W]: where any chosen latent of a slot's edit is above its threshold, whatever the gate."""
        slots = Slots(timestep, which, which, which)
        return self.find(hookpoint, x_in, x_out, slots, None).fires.any(2).view(len(x_out), *x_out.shape[2:])


def _soft(z: Tensor, thresholds: Tensor) -> Tensor:
    """`σ((z − θ) / |θ|)` of [S, P, K] and [S, K]; 0 where θ is infinite."""
    finite = thresholds.isfinite()[:, None, :]
    theta = torch.where(thresholds.isfinite(), thresholds, 1.0)[:, None, :]
    return torch.where(finite, torch.sigmoid((z - theta) / theta.abs().clamp(min=1e-3)), 0.0)


def _pad(table: Tensor, shape: tuple[int, ...], value: float) -> Tensor:
    padded = torch.full(shape, value, dtype=table.dtype)
    padded[tuple(slice(0, n) for n in table.shape)] = table.cpu()
    return padded

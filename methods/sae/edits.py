"""What is done where an SAE sees a concept: steer its latents (SAeUron), or replace the patches that show it (PER).

Tables are [H, T, F]: hook points, steps of the statistics, latents chosen at a step (padded with infinite thresholds). A
second set, the gate, says *whether* a picture shows the concept, the first *where*: until a gate latent exceeds its threshold
anywhere in a picture, in any half and at any hook point, nothing is edited; from then on everything is, to the end.
Edits of a batch are one module per class: every row looks its own tables up, no loop over rows or latents.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bench.api import ActivationEdit, BenchError, EditBank
from methods.sae.autoencoder import SparseAutoencoder, check_width, load_sae, sae_digest
from methods.sae.training import tokens_of

ErrorTerm = Literal["exact", "published-code", "none"]
Source = Literal["random", "nearest", "mean"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentEdit(ActivationEdit):
    """An edit gated by SAE latents. `saes` are folders, one per hook point, `digests` theirs."""

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


@dataclass(frozen=True, eq=False, kw_only=True)
class SteerLatents(LatentEdit):
    """`x + (z′ − z) W_dec` where `z′_i = z_i · factor_i` for chosen latents above their threshold, `z` after the TopK."""

    factors: Tensor
    """float32 [H, T, F], multiplier · mean activation (public code `utils/hooks.py`: multiplied by, not replaced by)."""
    error: ErrorTerm = "exact"
    """Of the SAE's reconstruction error: `exact` keeps it (x + δ), `none` drops it (x̂ + δ), `published-code` has the public
    code's sign (x̂ + δ + x̂ − x)."""

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> LatentBank:
        """See `ActivationEdit.stack`."""
        return SteerBank([edit for edit in edits if isinstance(edit, cls)])


@dataclass(frozen=True, eq=False, kw_only=True)
class ReplacePatches(LatentEdit):
    """Tokens where any chosen latent is above its threshold become tokens of the same map where none is (PER, arXiv:2606.31699)."""

    source: Source = "random"
    dilation: int = 0

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> LatentBank:
        """See `ActivationEdit.stack`."""
        return ReplaceBank([edit for edit in edits if isinstance(edit, cls)])


class Found(NamedTuple):
    """What a bank sees in a call."""

    tokens: Tensor
    """[S, P, C] as they came."""
    z: Tensor
    """float32 [S, P, F], the TopK activations of each slot's own latents."""
    fires: Tensor
    """bool [S, P, F]: above the threshold."""
    latents: Tensor
    """int64 [S, F]."""
    place: tuple[Tensor, Tensor]
    """(edit, step) int64 [S] of each slot in the tables."""
    is_open: Tensor
    """bool [S]: whether the slot's gate is open."""
    pre: Tensor
    """float32 [S, P, n] before the TopK."""
    kth: Tensor
    """float32 [S, P, 1], the smallest activation that survives it."""


class LatentBank(EditBank):
    """Tables of many edits whose SAEs are of one folder (`LatentEdit.bank`)."""

    timesteps: Tensor
    latents: Tensor
    thresholds: Tensor
    gate_latents: Tensor
    gate_thresholds: Tensor
    gated: Tensor

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
        self.loaded: dict[str, SparseAutoencoder] = {}
        self.opened: Tensor | None = None
        """Bool [S], by row of the batch: whether the gate has opened."""

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

    def find(self, hookpoint: str, x_out: Tensor, timestep: Tensor, which: Tensor, row: Tensor | None = None) -> Found:
        """Encode every token and look at each slot's own latents. With `row`, what fires behind a closed gate does not count."""
        sae, tokens = self.sae(hookpoint), tokens_of(x_out)
        check_width(hookpoint, sae.config, tokens.shape[2])
        edit = which.clamp(min=0)
        place = edit, (self.timesteps[edit] - timestep[:, None]).abs().argmin(1)
        hook = self.names.index(hookpoint)
        pre = sae.pre(tokens)
        kth = sae.smallest_kept(pre)
        latents = self.latents[hook][place]
        z = _kept(pre, kth, latents)
        fires = (z > self.thresholds[hook][place][:, None, :]) & (which >= 0)[:, None, None]
        is_open = torch.ones_like(which, dtype=torch.bool)
        if row is not None and self.gate_latents.shape[-1]:
            seen = (_kept(pre, kth, self.gate_latents[hook][place]) > self.gate_thresholds[hook][place][:, None, :]).flatten(1).any(1)
            is_open = self._opened(seen & (which >= 0), row) | ~self.gated[edit]
        return Found(tokens, z, fires & is_open[:, None, None], latents, place, is_open, pre, kth)

    def _opened(self, seen: Tensor, row: Tensor) -> Tensor:
        """Bool [S]: whether each slot's row has an open gate, now that `seen` [S] has been seen."""
        now = torch.zeros_like(seen).index_put((row,), seen, accumulate=True)
        self.opened = now if self.opened is None else self.opened | now
        return self.opened[row]

    def detected(self, hookpoint: str, x_out: Tensor, timestep: Tensor, which: Tensor) -> Tensor:
        """Mask [S, H, W]: where any chosen latent of a slot's edit is above its threshold, whatever the gate."""
        return self.find(hookpoint, x_out, timestep, which).fires.any(2).view(len(x_out), *x_out.shape[2:])


class SteerBank(LatentBank):
    """Many `SteerLatents`."""

    edits: Sequence[SteerLatents]
    factors: Tensor
    missing: Tensor

    def __init__(self, edits: Sequence[SteerLatents]) -> None:
        super().__init__(edits)
        self.register_buffer("factors", self._table("factors", 1.0))
        self.register_buffer("missing", torch.tensor([{"exact": 0.0, "none": 1.0, "published-code": 2.0}[edit.error] for edit in edits]))
        """How often x̂ − x is added to what keeps the error."""
        self.rebuilds = any(edit.error != "exact" for edit in edits)

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: Tensor, which: Tensor, key: Tensor, row: Tensor) -> Tensor:
        """See `EditBank.edit`. Tokens where nothing fires come back bit for bit under `exact`."""
        found, sae = self.find(hookpoint, x_out, timestep, which, row), self.sae(hookpoint)
        factors = self.factors[self.names.index(hookpoint)][found.place]
        change = torch.where(found.fires, found.z * (factors[:, None, :] - 1), 0)
        edited = found.tokens.float() + change @ sae.W_dec[found.latents]
        touched = found.fires.any(2, keepdim=True)
        if self.rebuilds:
            missing = sae.decode(found.pre * (found.pre >= found.kth)) - found.tokens.float()
            times = self.missing[found.place[0]] * (which >= 0) * found.is_open
            edited = edited + times[:, None, None] * missing
            touched = touched | (times > 0)[:, None, None]
        new = torch.where(touched, edited.to(x_out.dtype), found.tokens)
        return new.transpose(1, 2).reshape(x_out.shape)


class ReplaceBank(LatentBank):
    """Many `ReplacePatches`."""

    edits: Sequence[ReplacePatches]
    source: Tensor
    dilation: Tensor

    def __init__(self, edits: Sequence[ReplacePatches]) -> None:
        super().__init__(edits)
        self.register_buffer("source", torch.tensor([("random", "nearest", "mean").index(edit.source) for edit in edits]))
        self.register_buffer("dilation", torch.tensor([edit.dilation for edit in edits]))
        self.widest = max(edit.dilation for edit in edits)
        self.sources = {edit.source for edit in edits}

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: Tensor, which: Tensor, key: Tensor, row: Tensor) -> Tensor:
        """See `EditBank.edit`. A map where nothing or everything is detected comes back as it is."""
        found = self.find(hookpoint, x_out, timestep, which, row)
        edit = found.place[0]
        seen = self._dilated(found.fires.any(2), x_out.shape[2:], self.dilation[edit])
        seen = seen & ~seen.all(1, keepdim=True)  # nothing is left to take an embedding from
        source = self.source[edit][:, None]
        new = found.tokens
        if "random" in self.sources:
            taken = take(found.tokens, random_source(seen, key + name_seed(hookpoint), timestep))
            new = torch.where((seen & (source == 0))[..., None], taken, new)
        if "nearest" in self.sources:
            taken = take(found.tokens, nearest_source(seen, x_out.shape[2:]))
            new = torch.where((seen & (source == 1))[..., None], taken, new)
        if "mean" in self.sources:
            kept = (~seen).float()
            mean = torch.einsum("sp,spc->sc", kept / kept.sum(1, keepdim=True), found.tokens.float()).to(x_out.dtype)
            new = torch.where((seen & (source == 2))[..., None], mean[:, None, :], new)
        return new.transpose(1, 2).reshape(x_out.shape)

    def _dilated(self, seen: Tensor, size: torch.Size, radius: Tensor) -> Tensor:
        """Mask [S, P], grown by each slot's `radius` cells (a square), or by as many as leave a token outside."""
        grown = seen
        for r in range(1, self.widest + 1):
            square = torch.nn.functional.max_pool2d(seen.view(-1, 1, *size).float(), 2 * r + 1, 1, r).flatten(1) > 0
            grown = torch.where(((radius >= r) & ~square.all(1))[:, None], square, grown)
        return grown


def _kept(pre: Tensor, kth: Tensor, latents: Tensor) -> Tensor:
    """[S, P, F], the chosen `latents` [S, F] of `pre` [S, P, n] that survive the TopK, else 0."""
    z = pre.gather(2, latents[:, None, :].expand(-1, pre.shape[1], -1))
    return z * (z >= kth)


def take(tokens: Tensor, source: Tensor) -> Tensor:
    """Tokens [S, P, C] by index [S, P]."""
    return tokens.gather(1, source[..., None].expand(-1, -1, tokens.shape[2]))


def random_source(seen: Tensor, key: Tensor, timestep: Tensor) -> Tensor:
    """int64 [S, P]: for every token one of its map's unseen tokens, uniformly and independently, a function of (key, timestep, token).

    The same on every device: integer hashing, no generator.
    """
    token = torch.arange(seen.shape[1], device=seen.device)
    draw = _mixed(_mixed(key[:, None] + timestep[:, None] * 0x2545F491) + token)
    unseen = seen.int().sort(dim=1, stable=True).indices  # unseen tokens first, in order
    count = (~seen).sum(1, keepdim=True).clamp(min=1)
    return unseen.gather(1, (draw & 0x7FFFFFFF) % count)


def name_seed(name: str) -> int:
    """A number in [0, 2**62) for a hook point, so that two of them draw differently for one key."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 2


def _mixed(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) in wrapping int64 arithmetic."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def nearest_source(seen: Tensor, size: torch.Size) -> Tensor:
    """int64 [S, P]: the unseen token nearest on the grid (of equal ones the first)."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1).to(seen.device)
    distance = (places[:, None] - places[None]).square().sum(-1)
    return distance[None].expand(len(seen), -1, -1).masked_fill(seen[:, None, :], 2**30).argmin(2)


def _pad(table: Tensor, shape: tuple[int, ...], value: float) -> Tensor:
    padded = torch.full(shape, value, dtype=table.dtype)
    padded[tuple(slice(0, n) for n in table.shape)] = table.cpu()
    return padded

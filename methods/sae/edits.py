"""What is done where an SAE sees a concept: steer its latents (SAeUron), or replace the patches that show it (PER)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.api import ActivationEdit, Slots
from methods.sae.autoencoder import tokens_of
from methods.sae.bank import LatentBank, LatentEdit

ErrorTerm = Literal["exact", "published-code", "none"]
Source = Literal["random", "nearest", "mean"]
_WIDTH = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class SteerLatents(LatentEdit):
    """`x + (z′ − z) W_dec` where `z′_i = z_i · factor_i` for chosen latents above their threshold, `z` after the TopK.

    x is the block's output; where the SAE reads output − input, z and x̂ are of that, and what changes in it is added to the output.
    """

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
    """Tokens where any chosen latent is above its threshold become tokens of the same map where none is (PER, arXiv:2606.31699).

    Where the SAE reads r = output − input, tokens of r are replaced: `y_p = x_in_p + r_q(p)`. Which tensor the authors swap in
    SDXL, output or output − input, is not public.
    """

    source: Source = "random"
    dilation: int = 0

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> LatentBank:
        """See `ActivationEdit.stack`."""
        return ReplaceBank([edit for edit in edits if isinstance(edit, cls)])


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
        self.restless = self.missing > 0

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        """See `EditBank.edit`. Tokens where nothing fires come back bit for bit under `exact`."""
        found, sae, tokens = self.find(hookpoint, x_in, x_out, slots, state), self.sae(hookpoint), tokens_of(x_out)
        factors = self.factors[self.names.index(hookpoint)][found.place]
        change = torch.where(found.fires, found.z * (factors[:, None, :] - 1), 0)
        if found.slack is not None:  # straight through: whether a latent fires has no gradient of its own
            change = change + found.slack * change.detach()
        edited = tokens.float()
        # In products of one width: a neighbour with more latents must not change the order in which a row's own are summed.
        change = torch.nn.functional.pad(change, (0, -change.shape[2] % _WIDTH))
        latents = torch.nn.functional.pad(found.latents, (0, -found.latents.shape[1] % _WIDTH))
        for part, own in zip(change.split(_WIDTH, 2), latents.split(_WIDTH, 1), strict=True):
            edited = edited + part @ sae.W_dec[own]
        touched = found.fires.any(2, keepdim=True)
        if self.rebuilds:
            missing = sae.decode(sae.encode(found.tokens)) - found.tokens.float()
            present = self.present[self.names.index(hookpoint)][found.place[0]]
            times = self.missing[found.place[0]] * (present & (slots.which >= 0) & found.is_open)
            edited = edited + times[:, None, None] * missing
            touched = touched | (times > 0)[:, None, None]
        new = torch.where(touched, edited.to(x_out.dtype), tokens)
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

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        """See `EditBank.edit`. A map where nothing or everything is detected comes back as it is."""
        found = self.find(hookpoint, x_in, x_out, slots, state)
        edit = found.place[0]
        seen = self._dilated(found.fires.any(2), x_out.shape[2:], self.dilation[edit])
        seen = seen & ~seen.all(1, keepdim=True)  # nothing is left to take an embedding from
        source = self.source[edit][:, None]
        new = found.tokens
        if "random" in self.sources:
            taken = take(found.tokens, random_source(seen, slots.key + name_seed(hookpoint), slots.timestep))
            new = torch.where((seen & (source == 0))[..., None], taken, new)
        if "nearest" in self.sources:
            taken = take(found.tokens, nearest_source(seen, x_out.shape[2:]))
            new = torch.where((seen & (source == 1))[..., None], taken, new)
        if "mean" in self.sources:
            kept = (~seen).float()
            mean = torch.einsum("sp,spc->sc", kept / kept.sum(1, keepdim=True), found.tokens.float()).to(new.dtype)
            new = torch.where((seen & (source == 2))[..., None], mean[:, None, :], new)
        if found.slack is not None:  # straight through: whether a token is replaced has no gradient of its own
            slack = self._dilated_slack(found.slack.sum(2), x_out.shape[2:], self.dilation[edit])
            new = new + (slack[..., None] * (new - found.tokens).detach()).to(new.dtype)
        if self.sae(hookpoint).config.residual:
            new = torch.where(seen[..., None], (tokens_of(x_in) + new).to(x_out.dtype), tokens_of(x_out))
        return new.transpose(1, 2).reshape(x_out.shape)

    def _dilated(self, seen: Tensor, size: torch.Size, radius: Tensor) -> Tensor:
        """Mask [S, P], grown by each slot's `radius` cells (a square), or by as many as leave a token outside."""
        grown = seen
        for r in range(1, self.widest + 1):
            square = torch.nn.functional.max_pool2d(seen.view(-1, 1, *size).float(), 2 * r + 1, 1, r).flatten(1) > 0
            grown = torch.where(((radius >= r) & ~square.all(1))[:, None], square, grown)
        return grown

    def _dilated_slack(self, slack: Tensor, size: torch.Size, radius: Tensor) -> Tensor:
        """What `_dilated` does to a mask, for the gradient of one: zero [S, P]."""
        found = slack
        for r in range(1, self.widest + 1):
            square = torch.nn.functional.avg_pool2d(slack.view(-1, 1, *size), 2 * r + 1, 1, r, divisor_override=1).flatten(1)
            found = torch.where((radius >= r)[:, None], square, found)
        return found


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
    y, x = torch.meshgrid(*(torch.arange(n, device=seen.device) for n in size), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    distance = (places[:, None] - places[None]).square().sum(-1)
    return distance[None].expand(len(seen), -1, -1).masked_fill(seen[:, None, :], 2**30).argmin(2)

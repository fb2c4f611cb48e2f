"""What an SAE's edit does in one picture, as numbers: its latents step by step, the patches it changes, and what else fires them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.api import ActivationEdit, DiffusionModel, EditBank, Erasure, GenerationRequest, Row, Slots, sample
from methods.sae.bank import LatentBank, LatentEdit
from methods.sae.pictures import Watched, strengths_by_latent

LATENTS = 4
"""Per hook point, those chosen at most steps."""
TOP = 6
"""Pictures that fire a latent most."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Listener(ActivationEdit):
    """Changes nothing; at each hook point float32 [S, L] per call, how strongly each of `wanted` fires anywhere in a map."""

    inner: LatentEdit
    hookpoints: tuple[str, ...]
    timesteps: Tensor
    wanted: dict[str, list[int]]
    heard: dict[str, list[Tensor]]

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> EditBank:
        (one,) = edits
        assert isinstance(one, _Listener)
        bank = type(one.inner).stack([one.inner])
        assert isinstance(bank, LatentBank)
        return _ListenerBank(bank, one)


class _ListenerBank(EditBank):
    def __init__(self, inner: LatentBank, listener: _Listener) -> None:
        super().__init__()
        self.inner, self.listener = inner, listener

    def state(self, rows: int) -> dict[str, Tensor]:
        return {}

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        z = self.inner.sae(hookpoint).encode(self.inner.tokens(hookpoint, x_in, x_out))
        self.listener.heard[hookpoint].append(z[..., self.listener.wanted[hookpoint]].amax(1).cpu())
        return x_out


def inside(
    model: DiffusionModel, erasure: Erasure, requests: Sequence[GenerationRequest], others: Sequence[GenerationRequest],
    dtype: torch.dtype, slots: int,
) -> dict[str, Any] | None:  # fmt: skip
    """A look at an erasure with one such edit, else None.

    `latents`: per hook point and latent its share of the largest strength at each step, 0 where it is not chosen, and `top`: the
    pictures among `others` (places) that fire it most anywhere in the trajectory. `masks`: per request and hook point a string per
    step and half of guidance (unconditional first), "1" where a patch was changed, row by row; `grid` the width of the map.
    `base`, `edited`, `others`: uint8 [n, H, W, 3].
    """
    edits = [edit for edit in erasure.activations if isinstance(edit, LatentEdit)]
    if len(edits) != 1 or len(erasure.activations) != 1:
        return None
    (edit,) = edits
    watched = Watched.of(edit)
    base = sample(model, [Row(request, Erasure()) for request in requests], dtype, slots).latents
    edited = sample(model, [Row(request, replace(erasure, activations=(watched,))) for request in requests], dtype, slots).latents
    masks = {name: watched.masks(name, len(requests), slots) for name in edit.hookpoints}
    factors = getattr(edit, "factors", None)
    rows = strengths_by_latent(edit, None if factors is None else factors.abs())
    chosen = {name: sorted(own, key=lambda latent: (-sum(v > 0 for v in own[latent]), latent))[:LATENTS] for name, own in rows.items()}
    heard, pictures = _heard(model, edit, chosen, others, dtype, slots)
    return {
        "hookpoints": list(edit.hookpoints),
        "grid": {name: int(mask.shape[-1]) for name, mask in masks.items()},
        "masks": [
            {name: [_bits(half) for half in mask[:, r].flatten(0, 1)] for name, mask in masks.items()} for r in range(len(requests))
        ],
        "latents": [
            {"hookpoint": name, "latent": latent, "strengths": [round(v, 3) for v in rows[name][latent]],
             "top": heard[name][:, place].topk(min(TOP, len(others))).indices.tolist() if len(others) else []}
            for name, own in chosen.items() for place, latent in enumerate(own)
        ],
        "base": model.decode(base), "edited": model.decode(edited), "others": pictures,
    }  # fmt: skip


def _heard(
    model: DiffusionModel, edit: LatentEdit, chosen: dict[str, list[int]], others: Sequence[GenerationRequest], dtype: torch.dtype,
    slots: int,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """How strongly each chosen latent fires in each of some un-edited pictures, [n, L] per hook point, and these pictures."""
    if not others:
        return {}, torch.empty(0, 1, 1, 3, dtype=torch.uint8)
    listener = _Listener(
        inner=edit, hookpoints=edit.hookpoints, timesteps=edit.timesteps, wanted=chosen, heard={name: [] for name in edit.hookpoints}
    )
    batch = slots // 2
    found: dict[str, list[Tensor]] = {name: [] for name in edit.hookpoints}
    latents = []
    for start in range(0, len(others), batch):  # one call's rows at a time: who is in a call is known then
        part = others[start : start + batch]
        latents.append(sample(model, [Row(request, Erasure(activations=(listener,))) for request in part], dtype, slots).latents)
        for name, calls in listener.heard.items():
            found[name].append(torch.stack(calls).amax(0)[1 : 2 * len(part) : 2])  # of each row, the conditional half
            calls.clear()
    return {name: torch.cat(own) for name, own in found.items()}, model.decode(torch.cat(latents))


def _bits(mask: Tensor) -> str:
    return "".join(map(str, mask.flatten().int().tolist()))

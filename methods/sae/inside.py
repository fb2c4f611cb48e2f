"""What an SAE's edit does in one picture, as numbers: its latents step by step, the patches it changes, and what else fires them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.api import ActivationEdit, DDIMSchedule, DiffusionModel, EditBank, Erasure, GenerationRequest, Row, Slots, sample
from methods.sae.bank import LatentBank, LatentEdit
from methods.sae.pictures import Watched, strengths_by_latent

K = TypeVar("K", bound=Hashable)
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
    model: DiffusionModel, erasures: Mapping[K, Erasure], requests: Mapping[K, Sequence[GenerationRequest]],
    pool: Sequence[GenerationRequest], dtype: torch.dtype, slots: int, say: Callable[[str], None] = lambda text: None,
) -> tuple[dict[K, dict[str, Any]], Tensor]:  # fmt: skip
    """A look at each erasure that is one such edit, on requests of its own, and the un-edited pictures of a pool uint8 [n, H, W, 3].

    `latents`: per hook point and latent its share of the largest strength at each step, 0 where it is not chosen, and `top`: the
    pictures of the pool (places) that fire it most anywhere in the trajectory. `masks`: per request and hook point a string per
    step and half of guidance (unconditional first), "1" where a patch was changed, row by row; `grid` the width of the map.
    `base`, `edited`: uint8 [n, H, W, 3].
    """
    edits = {key: edit for key, erasure in erasures.items() if (edit := _only_edit(erasure)) is not None}
    rows = {key: _by_latent(edit) for key, edit in edits.items()}
    chosen = {key: {name: _most(own) for name, own in rows[key].items()} for key in edits}
    heard: dict[K, dict[str, Tensor]] = {}
    pictures = torch.empty(0, 1, 1, 3, dtype=torch.uint8)
    for keys in _of_one_sae(edits):  # the pool is sampled once for all that read the same SAEs
        say(f"pictures that fire latents of {len(keys)} erasures")
        wanted = {name: sorted({latent for key in keys for latent in chosen[key][name]}) for name in edits[keys[0]].hookpoints}
        values, latents = _heard(model, edits[keys[0]], wanted, pool, dtype, slots)
        pictures = pictures if len(pictures) or not pool else model.decode(latents)
        for key in keys:
            heard[key] = {name: values[name][:, [wanted[name].index(latent) for latent in own]] for name, own in chosen[key].items()}
    found: dict[K, dict[str, Any]] = {}
    for key, edit in edits.items():
        say(str(key))
        places = _places(model, edit, requests[key])
        base, edited, masks = _seen(model, erasures[key], edit, requests[key], dtype, slots)
        found[key] = {
            "grid": {name: int(mask.shape[-1]) for name, mask in masks.items()},
            "masks": [_by_hookpoint(masks, r) for r in range(len(requests[key]))],
            "latents": [
                {"hookpoint": name, "latent": latent, "strengths": [round(rows[key][name][latent][place], 3) for place in places],
                 "top": heard[key][name][:, column].topk(min(TOP, len(pool))).indices.tolist()}
                for name, own in chosen[key].items() for column, latent in enumerate(own)
            ],
            "base": base, "edited": edited,
        }  # fmt: skip
    return found, pictures


def _places(model: DiffusionModel, edit: LatentEdit, requests: Sequence[GenerationRequest]) -> list[int]:
    """Of each step of the requests, the edit's own step, which may be of another schedule."""
    steps = DDIMSchedule.of(model.scheduler, requests[0].steps).timesteps.to(edit.timesteps.device)
    return [int(place) for place in (edit.timesteps - steps[:, None]).abs().argmin(1)]


def _only_edit(erasure: Erasure) -> LatentEdit | None:
    edits = erasure.activations
    return edits[0] if len(edits) == 1 and isinstance(edits[0], LatentEdit) else None


def _by_latent(edit: LatentEdit) -> dict[str, dict[int, list[float]]]:
    factors = getattr(edit, "factors", None)
    return strengths_by_latent(edit, None if factors is None else factors.abs())


def _most(rows: Mapping[int, Sequence[float]]) -> list[int]:
    """The latents that are chosen at most steps."""
    return sorted(rows, key=lambda latent: (-sum(value > 0 for value in rows[latent]), latent))[:LATENTS]


def _of_one_sae(edits: Mapping[K, LatentEdit]) -> list[list[K]]:
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[K]] = {}
    for key, edit in edits.items():
        groups.setdefault((edit.hookpoints, edit.saes), []).append(key)
    return list(groups.values())


def _seen(
    model: DiffusionModel, erasure: Erasure, edit: LatentEdit, requests: Sequence[GenerationRequest], dtype: torch.dtype, slots: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Pictures without and with the edit, and what it changed."""
    watched = Watched.of(edit)
    base = sample(model, [Row(request, Erasure()) for request in requests], dtype, slots).latents
    edited = sample(model, [Row(request, replace(erasure, activations=(watched,))) for request in requests], dtype, slots).latents
    return model.decode(base), model.decode(edited), {name: watched.masks(name, len(requests), slots) for name in edit.hookpoints}


def _heard(
    model: DiffusionModel, edit: LatentEdit, wanted: dict[str, list[int]], pool: Sequence[GenerationRequest], dtype: torch.dtype,
    slots: int,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """How strongly each wanted latent fires in each of some un-edited pictures, [n, L] per hook point, and these pictures' latents."""
    listener = _Listener(
        inner=edit, hookpoints=edit.hookpoints, timesteps=edit.timesteps, wanted=wanted, heard={name: [] for name in edit.hookpoints}
    )
    batch = slots // 2
    found: dict[str, list[Tensor]] = {name: [torch.zeros(0, len(wanted[name]))] for name in edit.hookpoints}
    latents = [torch.zeros(0, *model.latent_shape, device=model.device)]
    for start in range(0, len(pool), batch):  # one call's rows at a time: who is in a call is known then
        part = pool[start : start + batch]
        latents.append(sample(model, [Row(request, Erasure(activations=(listener,))) for request in part], dtype, slots).latents)
        for name, calls in listener.heard.items():
            found[name].append(torch.stack(calls).amax(0)[1 : 2 * len(part) : 2])  # of each row, the conditional half
            calls.clear()
    return {name: torch.cat(own) for name, own in found.items()}, torch.cat(latents)


def _by_hookpoint(masks: Mapping[str, Tensor], request: int) -> dict[str, list[str]]:
    return {name: [_bits(half) for half in mask[:, request].flatten(0, 1)] for name, mask in masks.items()}


def _bits(mask: Tensor) -> str:
    return "".join(map(str, mask.flatten().int().tolist()))

"""Where latents see a concept and what edits do to activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from bench.api import DDIMSchedule, DiffusionModel, Erasure, GenerationRequest, Probe, Row, sample
from methods.sae.autoencoder import tokens_of
from methods.sae.bank import LatentBank, LatentEdit

COVERED = 0.25
"""A token is the object's where at least this share of its area is: a thin object covers no token of a 4 × 4 map by half."""


@torch.no_grad()
def localisation(
    model: DiffusionModel, edits: Mapping[str, LatentEdit], objects: Sequence[str], prompts: Sequence[str], pixels: Tensor,
    coverage: Tensor, dtype: torch.dtype, slots: int, every: int = 2,
) -> pd.DataFrame:  # fmt: skip
    """How well the detected tokens are the object's: IoU per concept, hook point and step, beside the same mask shuffled.

    True pictures (uint8 [n, H, W, 3], `coverage` [n, H, W]) are encoded and noised to the step's timestep; the conditional
    half is detected. `edits` maps "object:fish" to an edit. Pictures without any detected token count with IoU 0.
    """
    latents = torch.cat([_encode(model, part) for part in pixels.split(32)])
    unet, found = model.sampling_unet(dtype), []
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator).to(model.device)
    for concept, edit in edits.items():
        own = torch.tensor([f"object:{name}" == concept for name in objects])
        bank = type(edit).stack([edit]).to(model.device)
        states = model.text_states([prompt for prompt, is_own in zip(prompts, own.tolist(), strict=True) if is_own])
        for timestep in edit.timesteps.tolist()[::every]:
            abar = float(model.scheduler.alphas_cumprod[timestep])
            noisy = abar**0.5 * latents[own] + (1 - abar) ** 0.5 * noise[own]
            masks = _detect(unet, bank, edit.hookpoints, noisy, states, timestep, dtype, slots)
            for hookpoint, mask in masks.items():
                truth = (adaptive_avg_pool2d(coverage[own][:, None], (mask.shape[1], mask.shape[2]))[:, 0] >= COVERED).flatten(1)
                seen = mask.flatten(1).cpu()
                order = torch.rand(seen.shape, generator=generator).argsort(1)
                found.append({
                    "concept": concept, "hookpoint": hookpoint, "timestep": timestep, "n": len(seen), "iou": _iou(seen, truth),
                    "iou_shuffled": _iou(seen.gather(1, order), truth), "detected": float(seen.float().mean()),
                    "object": float(truth.float().mean()), "any_detected": float(seen.any(1).float().mean()),
                })  # fmt: skip
    return pd.DataFrame(found)


def _encode(model: DiffusionModel, pixels: Tensor) -> Tensor:
    x = pixels.permute(0, 3, 1, 2).to(model.device).float() / 127.5 - 1
    latents: Tensor = model.vae.encode(x).latent_dist.mean * model.vae.config.scaling_factor
    return latents


def _detect(
    unet: nn.Module, bank: LatentBank, hookpoints: Sequence[str], noisy: Tensor, states: Tensor, timestep: int, dtype: torch.dtype,
    slots: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Hook point → bool [n, h, w]."""
    masks: dict[str, list[Tensor]] = {name: [] for name in hookpoints}
    modules = dict(unet.named_modules())

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
            t = torch.full((len(output[0]),), timestep, device=output[0].device)
            masks[name].append(bank.detected(name, args[0], output[0], t, torch.zeros_like(t)))

        return look

    handles = [modules[name].register_forward_hook(hook(name)) for name in hookpoints]
    try:
        for x, text in zip(noisy.split(slots), states.split(slots), strict=True):
            unet(x.to(dtype), torch.full((len(x),), timestep, device=x.device), encoder_hidden_states=text.to(x.device, dtype))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in masks.items()}


def _iou(seen: Tensor, truth: Tensor) -> float:
    union = (seen | truth).sum(1).clamp(min=1)
    return float(((seen & truth).sum(1) / union).float().mean())


class _Keeper(Probe):
    """All tokens of a hook point per step, in float32 on the CPU."""

    def __init__(self, hookpoint: str, steps: int) -> None:
        self.hookpoints = (hookpoint,)
        self.found: list[list[Tensor]] = [[] for _ in range(steps)]

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`."""
        self.found[step].append(tokens_of(x_out)[row >= 0].flatten(0, 1).float().cpu())

    @property
    def tokens(self) -> Tensor:
        """[T, N, C]."""
        return torch.stack([torch.cat(parts) for parts in self.found])


def activation_shift(
    model: DiffusionModel, hookpoints: Sequence[str], erasures: Mapping[str, Erasure], requests: Sequence[GenerationRequest],
    control: Sequence[GenerationRequest], dtype: torch.dtype, slots: int,
) -> tuple[pd.DataFrame, dict[str, Tensor]]:  # fmt: skip
    """How far activations at hook points move under each edit, against the un-edited model on the same requests.

    Per step, channels are put in units of the un-edited standard deviation. `mean_shift`: mean absolute shift of a channel's
    mean; `spread`: mean ratio of standard deviations; `outside`: share of values outside the un-edited 0.1 … 99.9 %;
    `norm_ratio`: ratio of median token norms; `norm_outside`: share of token norms outside the un-edited 0.1 … 99.9 %.
    `control` are other pictures of the same prompts: what sampling noise alone gives (row "un-edited, other noise"). Also
    returns the latents of each row, and those of the un-edited pictures under "un-edited".
    """
    steps = len(DDIMSchedule.of(model.scheduler, requests[0].steps).timesteps)
    latents: dict[str, Tensor] = {}

    def tokens(name: str, erasure: Erasure, own: Sequence[GenerationRequest]) -> list[Tensor]:
        keepers = [_Keeper(hookpoint, steps) for hookpoint in hookpoints]
        latents[name] = sample(model, [Row(request, erasure) for request in own], dtype, slots, probes=keepers).latents
        return [keeper.tokens for keeper in keepers]

    bases = tokens("un-edited", Erasure(), requests)
    jobs = {"un-edited, other noise": (Erasure(), control), **{name: (edit, requests) for name, edit in erasures.items()}}
    rows = []
    for name, job in jobs.items():
        for hookpoint, base, new in zip(hookpoints, bases, tokens(name, *job), strict=True):
            rows.append({"edit": name, "hookpoint": hookpoint, **_shift(base, new)})
    return pd.DataFrame(rows), latents


def _shift(base: Tensor, new: Tensor) -> dict[str, float]:
    mean, deviation = base.mean(1, keepdim=True), base.std(1, keepdim=True).clamp(min=1e-6)
    low, high = _range(base)
    norm, new_norm = base.norm(dim=2, keepdim=True), new.norm(dim=2, keepdim=True)
    norm_low, norm_high = _range(norm)
    return {
        "mean_shift": float(((new.mean(1, keepdim=True) - mean) / deviation).abs().mean()),
        "spread": float((new.std(1, keepdim=True) / deviation).mean()),
        "outside": float(((new < low) | (new > high)).float().mean()),
        "norm_ratio": float((new_norm.median(1).values / norm.median(1).values).mean()),
        "norm_outside": float(((new_norm < norm_low) | (new_norm > norm_high)).float().mean()),
    }


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """0.1 % and 99.9 % quantiles along dimension 1 of [T, N, C]."""
    low, high = np.quantile(values.numpy(), [0.001, 0.999], axis=1, keepdims=True)
    return torch.from_numpy(low), torch.from_numpy(high)

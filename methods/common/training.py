"""Training against a frozen model: its trajectories are sampled first and its predictions made once, so that an iteration is one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.api import DDIMSchedule, DiffusionModel, FitContext, PlainText


class Bank(NamedTuple):
    """States of base trajectories and the noise the student should predict there."""

    latents: Tensor
    """float32 [n, 4, h, w]."""
    timesteps: Tensor
    """int64 [n]."""
    states: Tensor
    """float32 [n, L, D], text states."""
    pooled: Tensor
    """float32 [n, P], pooled text; P = 0 but for SDXL."""
    target: Tensor
    """float32 [n, 4, h, w]."""


Target = Callable[[Tensor, Tensor], Tensor]
"""The frozen predictions without text and with it, [n, 4, h, w] each → what the student should predict with it."""


@torch.no_grad()
def walk(
    context: FitContext, text: str, target: Target, trajectories: int, steps: int, guidance: float, generator: torch.Generator
) -> Bank:
    """Walk rows of the frozen model down a schedule of `steps`, guided by `text`, and note every state, step after step."""
    model = context.model
    schedule = DDIMSchedule.of(model.scheduler, steps)
    pair = PlainText().encode(model, [""], "unconditional", 1) + PlainText().encode(model, [text], "conditional", 1)
    latents = torch.randn(trajectories, *model.latent_shape, generator=generator).to(model.device)
    states = torch.cat([cond.embeds.expand(trajectories, -1, -1) for cond in pair])
    pooled = torch.cat([cond.added.get("text_embeds", cond.embeds[:, 0, :0]).expand(trajectories, -1) for cond in pair])
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for step, t in enumerate(schedule.timesteps.tolist()):
        timesteps = torch.full((2 * trajectories,), t, device=model.device)
        predicted = predict(context, model.unet, latents.repeat(2, 1, 1, 1), timesteps, states, pooled)
        eps_none, eps_text = predicted.chunk(2)
        found.append((latents, timesteps[:trajectories], target(eps_none, eps_text)))
        guided = eps_none + guidance * (eps_text - eps_none)
        latents = float(schedule.x_scale[step]) * latents + float(schedule.out_scale[step]) * guided
    z, t, wanted = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Bank(z, t, states[-1:].expand(len(z), -1, -1), pooled[-1:].expand(len(z), -1), wanted)


def predict(context: FitContext, unet: Callable[..., Any], latents: Tensor, timesteps: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
    """What a UNet predicts in the run's precision, as float32 [n, 4, h, w]; gradients flow. `states` and `pooled` as in `Bank`."""
    with torch.autocast(context.model.device.type, context.dtype, enabled=context.dtype != torch.float32):
        predicted: Tensor = unet(latents, timesteps, **_texts(context.model, states, pooled)).sample
    return predicted.float()


def descend(
    context: FitContext, optimiser: torch.optim.Optimizer, iterations: int, loss: Callable[[], Tensor],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None, change: Callable[[], None] = lambda: None,
) -> list[float]:  # fmt: skip
    """So many optimiser steps on `loss()`, drawn anew each time, along gradients as `change()` leaves them.

    Returns the first and the last loss, nothing without iterations.
    """
    losses: list[Tensor] = []
    for iteration in range(iterations):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        change()
        optimiser.step()
        if schedule is not None:
            schedule.step()
        losses.append(value.detach())
        context.progress((iteration + 1) / iterations, "training")
    return [round(float(value), 6) for value in losses[:1] + losses[-1:]]


def _texts(model: DiffusionModel, states: Tensor, pooled: Tensor) -> dict[str, Any]:
    """The UNet's arguments for texts, of pictures of the model's own size."""
    return model.unet_texts(states, dict.fromkeys(model.added, pooled), [model.picture_size] * len(states))

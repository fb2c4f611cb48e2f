"""Deterministic DDIM (Song et al. 2021, eq. 12 with η = 0) as tables over steps, equal to diffusers' DDIMScheduler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from bench.errors import BenchError


@dataclass(frozen=True, eq=False)
class DDIMSchedule:
    """The steps of one trajectory. Step k of a row is `x ← x_scale[k] · x + out_scale[k] · out`, out the model's output.

    For both epsilon and v prediction, a DDIM step is linear in the latent and the output, so two numbers a step suffice.
    """

    timesteps: Tensor
    """int64 [steps], descending."""
    x_scale: Tensor
    """float32 [steps]."""
    out_scale: Tensor
    """float32 [steps]."""

    @classmethod
    def of(cls, scheduler: DDIMScheduler, steps: int) -> DDIMSchedule:
        """The tables of a diffusers scheduler for `steps` steps. BenchError for what deterministic DDIM does not cover."""
        config = scheduler.config
        if config.prediction_type not in ("epsilon", "v_prediction") or config.clip_sample or config.thresholding:
            raise BenchError(
                f"This sampler covers epsilon and v prediction without clipping, not {config.prediction_type}"
                f" with clip_sample={config.clip_sample}: change the model's scheduler_config.json."
            )
        if not 1 <= steps <= config.num_train_timesteps:
            raise BenchError(f"--steps is {steps}: choose 1 to {config.num_train_timesteps}.")
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.to(torch.int64).cpu()
        abar = scheduler.alphas_cumprod.double().cpu()
        previous = timesteps - config.num_train_timesteps // steps
        a = abar[timesteps]
        b = torch.where(previous >= 0, abar[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double())
        if config.prediction_type == "epsilon":
            x_scale = (b / a).sqrt()
            out_scale = (1 - b).sqrt() - x_scale * (1 - a).sqrt()
        else:
            x_scale = (a * b).sqrt() + ((1 - a) * (1 - b)).sqrt()
            out_scale = (a * (1 - b)).sqrt() - ((1 - a) * b).sqrt()
        return cls(timesteps, x_scale.float(), out_scale.float())

"""How a row gets from noise to latent. DDIM moves every row by its own step; other schedulers move whole batches in lock-step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import diffusers
import torch
from torch import Tensor

from bench.diffusion.noise import initial_noise, noise_seed
from bench.diffusion.schedule import DDIMSchedule
from bench.errors import BenchError, unknown
from bench.types import SCHEDULERS, GenerationRequest


class Solver(ABC):
    """Latents are float32 [R, 4, h, w] on the device; `step` int64 [R] there counts each row's own steps from 0."""

    lock_step: bool
    """Whether all rows of a call must be at the same step and of the same start."""

    @abstractmethod
    def timesteps(self, steps: int) -> Tensor:
        """What a trajectory of so many steps walks through, [steps], descending; on the CPU."""

    @abstractmethod
    def start(self, requests: Sequence[GenerationRequest], shape: tuple[int, int, int]) -> Tensor:
        """The latents before the first step, on the CPU. In lock-step this begins a new batch."""

    @abstractmethod
    def place(self, requests: Sequence[GenerationRequest], steps: Sequence[int], device: torch.device) -> None:
        """The rows of the calls that follow, and where each is."""

    @abstractmethod
    def inputs(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the UNet sees of each row: scaled latents and timesteps [R]."""

    @abstractmethod
    def advance(self, latents: Tensor, out: Tensor) -> Tensor:
        """The latents after the step, from the UNet's combined output; every row is a step further."""


class RowWiseDDIM(Solver):
    """Tables of all step counts in a run, one after the other; a row is a place in them."""

    lock_step = False

    def __init__(self, scheduler: diffusers.DDIMScheduler, step_counts: Sequence[int], device: torch.device) -> None:
        self.schedules = {steps: DDIMSchedule.of(scheduler, steps) for steps in step_counts}
        self.offset = dict(zip(self.schedules, accumulate(self.schedules, initial=0), strict=False))
        join = [torch.cat([getattr(s, name) for s in self.schedules.values()]) for name in ("timesteps", "x_scale", "out_scale")]
        self._timesteps, self._x_scale, self._out_scale = (table.to(device) for table in join)

    def timesteps(self, steps: int) -> Tensor:
        """See `Solver`."""
        return self.schedules[steps].timesteps

    def start(self, requests: Sequence[GenerationRequest], shape: tuple[int, int, int]) -> Tensor:
        """See `Solver`: standard normal noise."""
        return initial_noise(requests, shape)

    def place(self, requests: Sequence[GenerationRequest], steps: Sequence[int], device: torch.device) -> None:
        """See `Solver`."""
        places = [self.offset[request.steps] + step for request, step in zip(requests, steps, strict=True)]
        self._place = to_device(torch.tensor(places), device)

    def inputs(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """See `Solver`: DDIM does not scale."""
        return latents, self._timesteps[self._place]

    def advance(self, latents: Tensor, out: Tensor) -> Tensor:
        """See `Solver`."""
        x_scale, out_scale = (table[self._place][:, None, None, None] for table in (self._x_scale, self._out_scale))
        self._place = self._place + 1
        return x_scale * latents + out_scale * out


class LockStep(Solver):
    """A diffusers scheduler through its own `step`, a fresh one per batch. Noise that it draws is a function of the request."""

    lock_step = True

    def __init__(self, name: str, config: Any, step_counts: Sequence[int], device: torch.device) -> None:
        if len(step_counts) > 1:
            raise BenchError(f"{name} cannot sample rows of {sorted(step_counts)} steps together: use one --steps.")
        self.kind, self.config, self.steps, self.device = getattr(diffusers, SCHEDULERS[name]), config, step_counts[0], device
        self._fresh()
        if len(self.scheduler.timesteps.unique()) < self.steps:
            raise BenchError(f"{name} has no {self.steps} different timesteps: use fewer --steps.")

    def _fresh(self) -> None:
        self.scheduler = self.kind.from_config(self.config)
        self.scheduler.set_timesteps(self.steps, device=self.device)
        self.scheduler.set_begin_index(0)  # else it looks the first timestep up, which waits for the device
        self.step = 0

    def timesteps(self, steps: int) -> Tensor:
        """See `Solver`; of some schedulers they are fractions."""
        found: Tensor = self.scheduler.timesteps.cpu()
        return found

    def start(self, requests: Sequence[GenerationRequest], shape: tuple[int, int, int]) -> Tensor:
        """See `Solver`: noise times the scheduler's first sigma."""
        self._fresh()
        seeds = [noise_seed(request.seed, f"{request.noise_key}\nsteps") for request in requests]
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return initial_noise(requests, shape) * float(self.scheduler.init_noise_sigma)

    def place(self, requests: Sequence[GenerationRequest], steps: Sequence[int], device: torch.device) -> None:
        """See `Solver`: nothing to do, rows come and go together."""

    def inputs(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """See `Solver`."""
        t = self.scheduler.timesteps[self.step]
        return self.scheduler.scale_model_input(latents, t), t.expand(len(latents))

    def advance(self, latents: Tensor, out: Tensor) -> Tensor:
        """See `Solver`."""
        drawn = {"generator": self.generators} if self.kind is diffusers.EulerAncestralDiscreteScheduler else {}
        t = self.scheduler.timesteps[self.step]
        self.step += 1
        found: Tensor = self.scheduler.step(out, t, latents, **drawn).prev_sample
        return found


def solver_of(scheduler: diffusers.DDIMScheduler, requests: Sequence[GenerationRequest], device: torch.device) -> Solver:
    """What the requests name. BenchError for an unknown scheduler, several at once, or steps that cannot be."""
    names = sorted({request.scheduler for request in requests})
    step_counts = sorted({request.steps for request in requests})
    for name in names:
        if name not in SCHEDULERS:
            raise unknown("scheduler", name, SCHEDULERS)
    if len(names) > 1:
        raise BenchError(f"{' and '.join(names)} cannot sample together: use one --scheduler.")
    limit = scheduler.config.num_train_timesteps
    if not 1 <= step_counts[0] <= step_counts[-1] <= limit:
        raise BenchError(f"--steps is {next(s for s in step_counts if not 1 <= s <= limit)}: choose 1 to {limit}.")
    if names == ["ddim"]:
        return RowWiseDDIM(scheduler, step_counts, device)
    return LockStep(names[0], scheduler.config, step_counts, device)


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """From the CPU without a stall: pinned memory on CUDA."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)

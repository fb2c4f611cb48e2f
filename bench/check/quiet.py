"""Hold an edit's detector against the edit itself, on what blocks really put out."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.check.world import STEPS, World
from bench.diffusion.schedule import DDIMSchedule
from bench.interfaces import ActivationEdit, Probe, Slots

SCALES = (1.0, 1 / 8)
"""As it is, and so faint that a detector that looks at strength is silent."""


class QuietProbe(Probe):
    """Calls `detect` and `edit` on the activations of un-edited pictures; `broken` says where they contradict each other first."""

    def __init__(self, edit: ActivationEdit, world: World) -> None:
        self.hookpoints, self.broken = edit.hookpoints, ""
        self.bank = type(edit).stack([edit]).to(world.model.device)
        self.timesteps = DDIMSchedule.of(world.model.scheduler, STEPS).timesteps

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`. Every slot is a row of its own, in the state of a beginning."""
        for scale in SCALES:
            silent, changed = self._try(hookpoint, x_in * scale, x_out * scale, int(self.timesteps[step]))
            wrong = silent & changed
            if wrong.any() and not self.broken:
                self.broken = f"at {hookpoint}, timestep {int(self.timesteps[step])}, in {int(wrong.sum())} of {len(wrong)} slots"

    def _try(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """Bool [S] each: whether `detect` says no, and whether `edit` changes the output or its state."""
        count = len(x_out)
        row, t = torch.arange(count, device=x_out.device), torch.full((count,), timestep, device=x_out.device)
        fires = self.bank.detect(hookpoint, x_in, x_out, t, torch.ones(count, 1, dtype=torch.bool, device=x_out.device))[:, 0]
        before = self.bank.state(count)
        state = dict(before)
        slots = Slots(t, torch.zeros_like(row), row + 1, row, torch.ones(count, device=x_out.device))
        new = self.bank.edit(hookpoint, x_in, x_out.clone(), slots, state)
        changed = (new != x_out).flatten(1).any(1)
        for name, value in before.items():
            changed = changed | (state[name] != value).reshape(count, -1).any(1)
        return ~fires, changed

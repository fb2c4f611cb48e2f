"""Probes see what the sampler does; edits say when they first acted and refuse foreign timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.errors import BenchError
from bench.interfaces import ActivationEdit, EditBank, Erasure, Probe, Slots
from bench.suites.minicanvas import SUITE

HOOK = "mid_block.attentions.0"
STEPS = 4


class Watcher(Probe):
    hookpoints = (HOOK,)

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int], list[int]]] = []
        self.means: list[Tensor] = []

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        self.seen.append((step, row.tolist(), role.tolist()))
        self.means.append(x_out.float().mean((1, 2, 3)))


class _FromStepBank(EditBank):
    def __init__(self, below: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("below", torch.tensor(below))

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        acts = (slots.which >= 0) & (slots.timestep < self.below[slots.which.clamp(min=0)])
        return torch.where(acts[:, None, None, None], torch.zeros_like(x_out), x_out)


@dataclass(frozen=True)
class ZeroBelow(ActivationEdit):
    """Zeroes the block below a timestep."""

    below: int
    timesteps: Any = None
    hookpoints: tuple[str, ...] = (HOOK,)

    @classmethod
    def stack(cls, edits: Sequence[Any]) -> EditBank:
        return _FromStepBank([edit.below for edit in edits])


def request(seed: int = 1) -> Any:
    return SUITE.request("neon", "fish", seed, STEPS)


def test_a_probe_sees_every_row_half_and_step_after_the_edits(model: DiffusionModel) -> None:
    probe = Watcher()
    rows = [Row(request(1), Erasure()), Row(request(2), Erasure(activations=(ZeroBelow(10**6),))), Row(request(3), Erasure())]
    plain = sample(model, rows, torch.float32, 4)
    watched = sample(model, rows, torch.float32, 4, probes=[probe])
    assert torch.equal(plain.latents, watched.latents)
    assert [step for step, _, _ in probe.seen] == [*range(STEPS), *range(STEPS)]
    assert probe.seen[0][1:] == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert probe.seen[-1][1:] == ([2, 2, -1, -1], [0, 1, 0, 0])
    assert (probe.means[0][2:] == 0).all()
    assert (probe.means[0][:2] != 0).all()


def test_first_edit_is_the_first_step_that_changed_anything(model: DiffusionModel) -> None:
    timesteps = (751, 501, 251, 1)
    rows = [Row(request(), Erasure(activations=(ZeroBelow(below),))) for below in (10**6, 502, 0)]
    rows.append(Row(request(), Erasure()))
    assert sample(model, rows, torch.float32, 8).first_edit.tolist() == [0, timesteps.index(501), -1, -1]


def test_tables_of_other_timesteps_are_refused(model: DiffusionModel) -> None:
    near = ZeroBelow(0, torch.tensor([951, 701, 451, 201, 1]))
    sample(model, [Row(request(), Erasure(activations=(near,)))], torch.float32, 2)
    far = ZeroBelow(0, torch.tensor([991, 981, 971]))
    with pytest.raises(BenchError, match="statistics of 3 steps, none near timestep"):
        sample(model, [Row(request(), Erasure(activations=(far,)))], torch.float32, 2)

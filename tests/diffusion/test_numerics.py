"""What is fixed when a plan is made: dtype, slots, compilation, and that a picture's place in a call does not matter."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from bench.diffusion import numerics
from bench.diffusion.attention import SmallAttention
from bench.diffusion.memory import PeakMemory, keep_freed_memory, release_freed_memory
from bench.diffusion.model import DiffusionModel
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError


def test_slots_fit_in_half_of_the_free_memory_and_are_filled(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "_peak_mb", lambda sampler: 100.0 + 10.0 * sampler.slots)
    found = {}
    for free in (10_000.0, 1280.0, 1279.0, 1.0, None):
        monkeypatch.setattr(numerics, "free_mb", lambda device, free=free: free)
        found[free] = numerics.pick_slots(model, torch.float32, 1000)
    assert found == {10_000.0: 64, 1280.0: 64, 1279.0: 32, 1.0: 2, None: 64}
    assert [numerics.pick_slots(model, torch.float32, pictures) for pictures in (1, 2, 3, 16, 17, 32)] == [2, 4, 8, 32, 64, 64]


def test_explicit_attention_is_what_the_fused_kernel_computes(model: DiffusionModel) -> None:
    sampler = Sampler(model, torch.bfloat16, 8)
    x, timestep, states = numerics.call_inputs(sampler)
    assert numerics.describe(sampler)["small_attention"]
    assert not numerics.describe(Sampler(model, torch.float32, 8))["small_attention"]
    kinds, found = set(), numerics.call(sampler, x, timestep, states)
    fused = deepcopy(model.sampling_unet(torch.bfloat16))
    for module in fused.modules():
        if isinstance(module, Attention):
            kinds.add(type(module.processor))
            module.set_processor(AttnProcessor2_0())
    assert kinds == {SmallAttention}
    error = (found - fused(x, timestep, encoder_hidden_states=states, return_dict=False)[0]).float()
    assert error.square().mean() < 1e-4 * found.float().square().mean()


def test_slots_are_raised_until_places_do_not_matter(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(sampler: Sampler, x: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        tail = torch.arange(len(x)) >= len(x) // 4 * 4  # a kernel that treats what is left of fours otherwise
        return x + 1e-6 * tail[:, None, None, None]

    monkeypatch.setattr(numerics, "call", call)
    assert [numerics.invariant_slots(Sampler(model, torch.float32, slots)) for slots in (2, 4, 6, 9, 32)] == [2, 4, 8, 12, 32]
    monkeypatch.setattr(numerics, "call", lambda sampler, x, timestep, states: x + torch.arange(len(x))[:, None, None, None])
    with pytest.raises(BenchError, match="depend on its place in a call"):
        numerics.invariant_slots(Sampler(model, torch.float32, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_model_has_invariant_slots(model: DiffusionModel, dtype: torch.dtype) -> None:
    assert numerics.invariant_slots(Sampler(model, dtype, 6)) <= 8


def test_compiles_only_where_it_repays_itself(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {False: 1.0, True: 0.7}
    monkeypatch.setattr(numerics, "call_seconds", lambda *samplers: [seconds[sampler.compiled] for sampler in samplers])
    sampler = Sampler(model, torch.float32, 8)
    limit = 2 * numerics.COMPILING_SECONDS["cpu"] / numerics.COMPILED_SAVES
    assert not numerics.pick_compiled("auto", sampler, 0.9 * limit)
    assert numerics.pick_compiled("auto", sampler, 1.1 * limit)
    seconds[True] = 0.95
    assert not numerics.pick_compiled("auto", sampler, 100 * limit)
    assert numerics.pick_compiled("yes", sampler, 0)
    assert not numerics.pick_compiled("no", sampler, 100 * limit)


def test_a_continued_run_keeps_what_is_left_to_choose(model: DiffusionModel) -> None:
    kept = numerics.describe(Sampler(model, torch.bfloat16, 16))

    def settings(**asked: Any) -> Sampler | None:
        return numerics.kept_settings(kept, model, {"dtype": None, "slots": None, "compiled": None, **asked})

    found = settings()
    assert found is not None
    assert (found.dtype, found.slots, found.compiled) == (torch.bfloat16, 16, False)
    assert settings(dtype="bfloat16", slots=16) is not None
    assert settings(dtype="float32") is None
    assert settings(slots=8) is None
    assert settings(compiled=True) is None
    assert numerics.kept_settings({**kept, "torch": "another"}, model, {}) is None
    assert numerics.kept_settings(None, model, {}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the process's own account of its memory")
def test_memory_that_was_freed_before_hides_nothing_of_what_is_used_now() -> None:
    keep_freed_memory()
    before = torch.ones(50_000_000)
    del before
    release_freed_memory()
    with PeakMemory(torch.device("cpu")) as memory:
        now = torch.ones(20_000_000)
        del now
    assert memory.peak_mb == pytest.approx(80, rel=0.1)

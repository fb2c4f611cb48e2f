"""What is fixed when a plan is made: dtype, slots, compilation, and that a picture's place in a call does not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.diffusion import numerics
from bench.diffusion.model import DiffusionModel
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError


def test_slots_fit_in_half_of_the_free_memory(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "_peak_mb", lambda sampler: 100.0 + 10.0 * sampler.slots)
    found = {}
    for free in (10_000.0, 640.0, 639.0, 1.0, None):
        monkeypatch.setattr(numerics, "free_mb", lambda device, free=free: free)
        found[free] = numerics.pick_slots(model, torch.float32)
    assert found == {10_000.0: 32, 640.0: 32, 639.0: 16, 1.0: 2, None: 32}


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

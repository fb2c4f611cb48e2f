"""Rows that share the un-edited trajectory until their detector fires end with the same bytes as rows that walk alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import SLOTS, request_of
from torch import Tensor

from bench.diffusion.call import Call, Receipt
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Finished, Sampler, sample
from bench.errors import BenchError
from bench.interfaces import ActivationEdit, EditBank, Erasure, FitContext, Slots
from bench.registry import method
from bench.suites.minicanvas import SUITE
from bench.types import Concept

HOOK = "mid_block.attentions.0"


class _BrightBank(EditBank):
    def __init__(self, edits: Sequence[Any]) -> None:
        super().__init__()
        self.register_buffer("below", torch.tensor([edit.below for edit in edits]))
        self.register_buffer("factor", torch.tensor([edit.factor for edit in edits]))

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        acts = (slots.which >= 0) & (slots.timestep < self.below[slots.which.clamp(min=0)])
        factor = torch.where(acts, self.factor[slots.which.clamp(min=0)], 1).to(x_out.dtype)
        return torch.where(acts[:, None, None, None], x_out * factor[:, None, None, None], x_out)

    def detect(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: Tensor, wanted: Tensor) -> Tensor:
        return timestep[:, None] < self.below


@dataclass(frozen=True, eq=False)
class FromStep(ActivationEdit):
    """Scales the block's output below a timestep."""

    quiet_is_identity = True
    below: int
    factor: float = 0.5
    hookpoints: tuple[str, ...] = (HOOK,)

    @classmethod
    def stack(cls, edits: Sequence[Any]) -> EditBank:
        return _BrightBank(edits)


def shared(model: DiffusionModel, rows: Sequence[Row], dtype: torch.dtype, slots: int = SLOTS) -> tuple[Tensor, list[Finished], Sampler]:
    sampler = Sampler(model, dtype, slots, share=True)
    ended = list(sampler.stream(rows))
    latents = torch.full((len(rows), *model.latent_shape), torch.nan)
    for done in ended:
        if done.latent is not None:
            latents[done.rows] = done.latent
    return latents, ended, sampler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharing_changes_no_byte_for_any_concept(model: DiffusionModel, context: FitContext, dtype: torch.dtype) -> None:
    requests = [request_of(style, obj, seed) for seed, (style, obj) in enumerate((("neon", "fish"), ("pop", "key"), ("sketch", "tree")))]
    erasures = [Erasure()]
    some = SUITE.concepts if dtype == torch.bfloat16 else SUITE.concepts[::4]
    for number, concept in enumerate(some):
        kind = method("saeuron")
        detection = ("calibrated", "saeuron-code")[number % 2]
        error = ("exact", "published-code")[number % 3 == 0]
        erasures.append(kind(kind.Config(detection=detection, error=error)).fit(context, [concept]))
        if concept.kind == "object":
            kind = method("saeuron-detect")
            erasures.append(kind(kind.Config(detection=detection)).fit(context, [concept]))
    erasures += [method(name)().fit(context, [Concept("style", "neon")]) for name in ("uce", "sld")]
    rows = [Row(request, erasure) for erasure in erasures for request in requests]
    alone = sample(model, rows, dtype, SLOTS)
    together, ended, sampler = shared(model, rows, dtype)
    assert torch.equal(alone.latents, together)
    first_edit = {index: done.first_edit for done in ended for index in done.rows}
    assert [first_edit[index] for index in range(len(rows))] == alone.first_edit.tolist()
    assert max(len(done.rows) for done in ended) > len(some) // 2
    assert sampler.counts.steps < 0.8 * len(rows) * requests[0].steps


def test_a_row_forks_where_its_detector_fires_and_not_before(model: DiffusionModel) -> None:
    timesteps = (751, 501, 251, 1)
    request = request_of()
    erasures = [Erasure(), *(Erasure(activations=(FromStep(below),)) for below in (1000, 502, 502, 2, 1))]
    rows = [Row(request, erasure) for erasure in erasures]
    latents, ended, sampler = shared(model, rows, torch.float32)
    forked = {index: done.forked_at for done in ended for index in done.rows}
    assert forked == {0: None, 1: 0, 2: timesteps.index(501), 3: timesteps.index(501), 4: timesteps.index(1), 5: None}
    assert sampler.counts.steps == 4 + 4 + 3 + 3 + 1
    assert torch.equal(latents, sample(model, rows, torch.float32, SLOTS).latents)
    assert torch.equal(latents[5], latents[0])
    assert not torch.equal(latents[4], latents[0])


def test_a_shared_row_that_nobody_wants_any_more_ends(model: DiffusionModel) -> None:
    rows = [Row(request_of(), Erasure(activations=(FromStep(1000, factor),))) for factor in (0.5, 2.0)]
    sampler = Sampler(model, torch.float32, SLOTS, share=True)
    assert sorted(index for done in sampler.stream(rows) for index in done.rows) == [0, 1]
    assert sampler.counts.steps == 2 + 2 * 4  # its first step, one more until the flags of the first are read


def test_a_state_of_guidance_is_forked_too(model: DiffusionModel, context: FitContext) -> None:
    safe = method("sld")().fit(context, [Concept("style", "neon")])
    rows = [Row(request_of(steps=6), Erasure(guidance=safe.guidance, activations=edits)) for edits in ((), (FromStep(400),))]
    latents, ended, _ = shared(model, rows, torch.float32)
    assert {done.forked_at for done in ended} == {None, 3}
    assert torch.equal(latents, sample(model, rows, torch.float32, SLOTS).latents)


def test_rows_of_different_steps_share_calls(model: DiffusionModel) -> None:
    rows = [Row(request_of(seed=seed, steps=steps), Erasure()) for seed, steps in enumerate((2, 5, 3, 4, 2, 5, 3))]
    latents, _, sampler = shared(model, rows, torch.float32, 4)
    for row, latent in zip(rows, latents, strict=True):
        assert torch.equal(sample(model, [row], torch.float32, 4).latents[0], latent)
    assert (sampler.counts.steps, sampler.counts.calls) == (24, 12), "a row that ends makes room: two by two it were 5 + 4 + 5 + 3"


def test_a_latent_that_is_not_finite_ends_its_row_alone(model: DiffusionModel) -> None:
    good, bad = Erasure(), Erasure(activations=(FromStep(502, float("nan")),))
    rows = [Row(request_of(seed=seed), erasure) for seed in (1, 2, 3) for erasure in (good, bad)]
    alone = Sampler(model, torch.float32, SLOTS).all(rows)
    together, ended, _ = shared(model, rows, torch.float32)
    assert alone.broken == {1: 1, 3: 1, 5: 1}
    assert {index: done.step for done in ended if done.latent is None for index in done.rows} == alone.broken
    assert torch.equal(together[::2], alone.latents[::2])
    assert torch.equal(alone.latents[::2], sample(model, rows[::2], torch.float32, SLOTS).latents)
    assert together[1::2].isnan().all()
    with pytest.raises(BenchError, match=r"seed 1\) is not finite after step 2"):
        sample(model, rows, torch.float32, SLOTS)


def test_a_row_that_forks_where_the_shared_one_breaks_goes_on(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not finite after the step in which the detector fired: the edited row is another one."""
    rows = [
        Row(request_of(), erasure) for erasure in (Erasure(), Erasure(activations=(FromStep(502),)), Erasure(activations=(FromStep(1),)))
    ]
    expected = sample(model, rows, torch.float32, SLOTS).latents
    run = Call.run

    def broken(self: Call, unet: Any) -> Receipt:
        receipt = run(self, unet)
        for r, task in enumerate(receipt.tasks):
            if not task.row.erasure.activations and receipt.steps[r] == 1:
                receipt.flags[r, 0] = 1
        return receipt

    monkeypatch.setattr(Call, "run", broken)
    latents, ended, _ = shared(model, rows, torch.float32)
    assert torch.equal(latents[1], expected[1])
    assert [(done.rows, done.step) for done in ended if done.latent is None] == [([0, 2], 1)]

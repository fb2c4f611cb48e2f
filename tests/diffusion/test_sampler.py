from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import SLOTS, request_of
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import initial_noise
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.diffusion.text import PlainText
from bench.errors import BenchError
from bench.interfaces import ActivationEdit, Cond, EditBank, Erasure, FitContext, Role, Slots, TextEdit
from bench.registry import method
from bench.suites.minicanvas import OBJECTS, STYLES, SUITE
from bench.types import Concept

HOOK = "up_blocks.1.attentions.1"
PLAIN = Erasure()


class ShiftBank(EditBank):
    def __init__(self, amounts: Sequence[float], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("amounts", torch.tensor(amounts))

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        assert x_in.shape == x_out.shape
        assert all(value.shape[:1] == x_out.shape[:1] for value in slots)
        amount = self.amounts[slots.which.clamp(min=0)][:, None, None, None].to(x_out.dtype)
        return torch.where((slots.which >= 0)[:, None, None, None], x_out * amount, x_out).to(self.dtype or x_out.dtype)


@dataclass(frozen=True)
class Shift(ActivationEdit):
    amount: float
    hookpoints: tuple[str, ...] = (HOOK,)
    dtype: torch.dtype | None = None

    @classmethod
    def stack(cls, edits: Sequence[Any]) -> EditBank:
        return ShiftBank([edit.amount for edit in edits], edits[0].dtype)


@dataclass(frozen=True)
class SwitchedText(TextEdit):
    """The prompt at first, another text from step `start` on."""

    text: str
    start: int

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        plain = PlainText().encode(model, texts, role, steps)
        other = model.text_states([self.text])
        at = (torch.arange(steps) >= self.start).long()
        return [Cond(torch.cat([cond.embeds, other]), at) if role == "conditional" else cond for cond in plain]


def rows_of_all_kinds(context: FitContext) -> list[Row]:
    """Rows of text, guidance and activation edits with two and three slots, no two alike."""
    concept = [Concept("style", "neon")]
    fitted = [method(name)().fit(context, concept) for name in ("none", "negative-prompt", "uce", "sld")]
    for detection in ("calibrated", "saeuron-code"):
        for name in ("saeuron", "saeuron-detect"):
            kind = method(name)
            fitted.append(kind(kind.Config(detection=detection)).fit(context, [Concept("object", "fish")]))
    wide = method("saeuron")
    fitted.append(wide(wide.Config(detection="saeuron-code", features=8)).fit(context, [Concept("object", "fish")]))
    edits = [*fitted, Erasure(activations=(Shift(0.5),)), Erasure(activations=(Shift(2.0),))]
    return [Row(request_of(style, obj, seed), edit) for edit in edits for style, obj, seed in (("neon", "fish", 1), ("pop", "key", 2))]


def together(model: DiffusionModel, rows: Sequence[Row], dtype: torch.dtype = torch.float32) -> Tensor:
    return sample(model, rows, dtype, SLOTS).latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_do_not_depend_on_position_neighbours_or_order(model: DiffusionModel, context: FitContext, dtype: torch.dtype) -> None:
    rows = rows_of_all_kinds(context)
    expected = together(model, rows, dtype)

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.permutations(range(len(rows))), st.integers(1, len(rows)))
    def check(order: list[int], count: int) -> None:
        found = together(model, [rows[i] for i in order[:count]], dtype)
        assert torch.equal(found, expected[order[:count]])

    check()


def test_each_kind_of_edit_acts(model: DiffusionModel, context: FitContext) -> None:
    rows = rows_of_all_kinds(context)
    latents = together(model, rows)
    base = latents[:2]
    for start in range(2, len(rows), 2):
        assert not torch.equal(latents[start], base[0])


def test_equals_the_diffusers_pipeline() -> None:
    model = load_model(SUITE.model_folder(), torch.device("cpu"))
    pipe = StableDiffusionPipeline.from_pretrained(SUITE.model_folder(), local_files_only=True, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    requests = [request_of("sunset", "boat", steps=10), request_of("mosaic", "cup", steps=10)]
    ours = model.decode(sample(model, [Row(request, PLAIN) for request in requests], torch.float32, SLOTS).latents)
    theirs = pipe(
        [request.prompt for request in requests],
        num_inference_steps=10,
        guidance_scale=4.0,
        latents=initial_noise(requests, model.latent_shape),
        output_type="np",
        height=64,
        width=64,
    ).images
    assert (ours.float() / 255 - torch.from_numpy(theirs)).abs().max() < 2.5 / 255


def test_noise_is_a_function_of_seed_and_key_alone() -> None:
    one, two = request_of("neon", "fish", 1), request_of("neon", "fish", 2)
    shape = (4, 16, 16)
    assert torch.equal(initial_noise([one], shape)[0], initial_noise([two, one, one], shape)[2])
    assert not torch.equal(initial_noise([one], shape), initial_noise([two], shape))
    assert not torch.equal(initial_noise([one], shape), initial_noise([request_of("neon", "key", 1)], shape))
    drawn = initial_noise([request_of("neon", "fish", seed) for seed in range(200)], shape)
    assert abs(float(drawn.mean())) < 0.01
    assert abs(float(drawn.std()) - 1) < 0.01


def test_a_text_may_change_during_the_trajectory(model: DiffusionModel) -> None:
    request, other = request_of("neon", "fish"), "An image of key in pop style."
    found = together(model, [Row(request, Erasure(text=SwitchedText(other, start))) for start in (0, 2, 4)])
    plain, swapped = together(model, [Row(request, PLAIN), Row(request_of("neon", "fish"), Erasure(text=SwitchedText(other, 0)))])
    assert torch.equal(found[2], plain)
    assert torch.equal(found[0], swapped)
    assert not torch.equal(found[1], found[0])
    assert not torch.equal(found[1], found[2])


def test_rows_without_an_edit_pass_a_hook_untouched(model: DiffusionModel) -> None:
    plain = Row(request_of(), PLAIN)
    alone = together(model, [plain])[0]
    beside = together(model, [Row(request_of(), Erasure(activations=(Shift(0.0),))), plain])
    assert torch.equal(beside[1], alone)
    assert not torch.equal(beside[0], alone)
    assert not model.unet.get_submodule(HOOK)._forward_hooks


def test_pictures_show_what_was_asked(model: DiffusionModel) -> None:
    from bench.scoring import Scorer

    cells = [(style, obj) for i, style in enumerate(STYLES) for j, obj in enumerate(OBJECTS) if (i + j) % 4 == 0]
    requests = [request_of(style, obj, seed=3, steps=20) for style, obj in cells]
    pixels = model.decode(sample(model, [Row(request, PLAIN) for request in requests], torch.float32, 32).latents)
    scorer, none = Scorer.load(SUITE, torch.device("cpu")), [False] * len(requests)
    table = scorer.outcomes(requests, scorer.judge(pixels, none, [request.prompt for request in requests]), none)
    assert (table["style"] == table["style_pred"]).mean() >= 0.95
    assert (table["object"] == table["object_pred"]).mean() >= 0.9


def test_user_mistakes_are_sentences(model: DiffusionModel) -> None:
    with pytest.raises(BenchError, match="raise --batch-size"):
        sample(model, [Row(request_of(), PLAIN)], torch.float32, 1)
    with pytest.raises(BenchError, match="--steps is 0: choose 1 to 1000"):
        together(model, [Row(request_of(steps=0), PLAIN)])
    with pytest.raises(BenchError, match='Unknown scheduler "eular": did you mean "euler"'):
        together(model, [Row(replace(request_of(), scheduler="eular"), PLAIN)])
    with pytest.raises(BenchError, match="two Shift parts"):
        together(model, [Row(request_of(), Erasure(activations=(Shift(1.0), Shift(2.0))))])
    with pytest.raises(BenchError, match=r'did you mean "mid_block\.attentions\.0"'):
        together(model, [Row(request_of(), Erasure(activations=(Shift(1.0, ("mid_block.attention.0",)),)))])
    with pytest.raises(BenchError, match="must keep shape and dtype"):
        together(model, [Row(request_of(), Erasure(activations=(Shift(1.0, dtype=torch.float64),)))])

"""What every method must keep, and the invariants of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SLOTS, request_of
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.erasure import load_erasure, pack
from bench.errors import BenchError
from bench.interfaces import Erasure, FitContext
from bench.registry import load_object, method, methods
from bench.types import Concept

NEON, FISH = Concept("style", "neon"), Concept("object", "fish")
QUICK_SETTINGS = {
    "esd": {"iterations": 2, "trajectories": 2, "learning_rate": 1e-2},
    "spm": {"iterations": 2, "trajectories": 1, "denoising_steps": 2, "anchors": 1, "learning_rate": 0.1},
}
REQUESTS = [request_of("neon", "fish"), request_of("pop", "key")]


def fit(name: str, context: FitContext, concepts: list[Concept], **settings: object) -> Erasure:
    kind = method(name)
    return kind(kind.Config(**{**QUICK_SETTINGS.get(name, {}), **settings})).fit(context, concepts)


def pictures(model: DiffusionModel, erasure: Erasure) -> Tensor:
    with model.weights(erasure.weights.values if erasure.weights else {}):
        return sample(model, [Row(request, erasure) for request in REQUESTS], torch.float32, SLOTS).latents


def state(model: DiffusionModel) -> dict[str, Tensor]:
    networks = {"unet": model.unet, "text_encoder": model.text_encoder, "vae": model.vae}
    return {f"{n}.{k}": v.clone() for n, network in networks.items() for k, v in network.state_dict().items()}


TARGETS = {"style": [NEON], "object": [FISH], "both": [NEON, FISH]}
SUPPORTED = [
    pytest.param(name, concepts, id=f"{kind}-{name}")
    for kind, concepts in TARGETS.items()
    for name in sorted(methods().keys() - {"checkpoint"})  # it has nothing without a file: see test_checkpoint.py
    if all(concept.kind in method(name).card.supports for concept in concepts)
]


@pytest.mark.parametrize(("name", "concepts"), SUPPORTED)
def test_contract(name: str, concepts: list[Concept], model: DiffusionModel, context: FitContext, tmp_path: Path) -> None:
    before = state(model)
    erasure = fit(name, context, concepts)
    sampled = pictures(model, erasure)
    after = state(model)
    assert all(torch.equal(before[key], after[key]) for key in before), "the model must come back bit for bit"
    assert (erasure.weights is None) == method(name)(method(name).Config()).row_wise
    pack(erasure).save(tmp_path)
    again, _ = load_erasure(tmp_path, method(name).parts, torch.device("cpu"))
    assert torch.equal(pictures(model, again), sampled)
    refitted = fit(name, context, concepts)
    assert torch.equal(pictures(model, refitted), sampled), "a fit is a function of its recipe"
    if name == "none":
        assert torch.equal(sampled, pictures(model, Erasure()))
    else:
        assert not torch.equal(sampled[0], pictures(model, Erasure())[0])


def test_weights_are_restored_after_an_error_and_only_named_ones_change(model: DiffusionModel, context: FitContext) -> None:
    erasure = fit("esd", context, [NEON], train_method="x-strict")
    assert erasure.weights is not None
    before = state(model)

    def fail_inside() -> None:
        with model.weights(erasure.weights.values):
            changed = {key for key, value in state(model).items() if not torch.equal(value, before[key])}
            assert changed == set(erasure.weights.values)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert all(torch.equal(value, before[key]) for key, value in state(model).items())


def test_weights_of_another_model_are_refused(model: DiffusionModel) -> None:
    with pytest.raises(BenchError, match=r'no weight "unet.nothing"'), model.weights({"unet.nothing": torch.zeros(1)}):
        pass
    with pytest.raises(BenchError, match=r"is \[3\] in the edit"), model.weights({"unet.conv_in.bias": torch.zeros(3)}):
        pass


def test_a_changed_text_encoder_is_asked_again(model: DiffusionModel) -> None:
    plain = model.text_states(["a neon fish"])
    name = "text_encoder.final_layer_norm.bias"
    key = next(k for k in model.text_encoder.state_dict() if k.endswith("final_layer_norm.bias"))
    with model.weights({name if key == "final_layer_norm.bias" else f"text_encoder.{key}": torch.ones(128)}):
        assert not torch.equal(model.text_states(["a neon fish"]), plain)
    assert torch.equal(model.text_states(["a neon fish"]), plain)


# Negative prompt


def test_an_empty_negative_prompt_is_plain_guidance(model: DiffusionModel) -> None:
    text = load_object("methods.negative_prompt:NegativeText")("")
    assert torch.equal(pictures(model, Erasure(text=text)), pictures(model, Erasure()))


# SLD


def safe_guidance(**changes: float) -> object:
    values = {"safety_scale": 100.0, "warmup": 0, "threshold": 1.0, "momentum_scale": 0.0, "momentum_beta": 0.0, **changes}
    return load_object("methods.sld:SafeGuidance")(("An image in neon style.",), **values)


def test_sld_without_safety_scale_is_plain_guidance(model: DiffusionModel) -> None:
    plain = pictures(model, Erasure())
    torch.testing.assert_close(pictures(model, Erasure(guidance=safe_guidance(safety_scale=0.0))), plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(pictures(model, Erasure(guidance=safe_guidance(warmup=99))), plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(pictures(model, Erasure(guidance=safe_guidance(threshold=-1e9))), plain, rtol=0, atol=1e-4)
    assert not torch.allclose(pictures(model, Erasure(guidance=safe_guidance())), plain, atol=1e-2)


def test_sld_equals_the_formula_by_hand() -> None:
    guidance = safe_guidance(safety_scale=0.5, threshold=0.3, momentum_scale=0.5, momentum_beta=0.25)
    # One number a row: ε_∅ = 1, ε_p = 3, ε_S = 2.8, ν = 0.2, s = 4.
    eps = torch.tensor([1.0, 3.0, 2.8]).view(1, 3, 1, 1, 1)
    # ε_p − ε_S = 0.2 < 0.3, so μ = 0.5 · 0.2 = 0.1; γ = 0.1 · 1.8 + 0.5 · 0.2 = 0.28; ε = 1 + 4 (3 − 1 − 0.28) = 7.88;
    # ν ← 0.25 · 0.2 + 0.75 · 0.28 = 0.26.
    momentum = {"momentum": torch.full((1, 1, 1, 1), 0.2)}
    combined, new = guidance.combine(eps, torch.tensor([0]), torch.tensor(4.0).view(1, 1, 1, 1), momentum)
    assert float(combined) == pytest.approx(7.88)
    assert float(new["momentum"]) == pytest.approx(0.26)


# UCE


def formula(weight: Tensor, c: Tensor, g: Tensor, r: Tensor, a: float, b: float, lam: float) -> Tensor:
    """UCE's closed form for one matrix, term by term."""
    top, bottom = lam * weight, lam * torch.eye(weight.shape[1], dtype=weight.dtype)
    for edited, guide in zip(c, g, strict=True):
        top = top + a * torch.outer(weight @ guide, edited)
        bottom = bottom + a * torch.outer(edited, edited)
    for kept in r:
        top = top + b * torch.outer(weight @ kept, kept)
        bottom = bottom + b * torch.outer(kept, kept)
    return top @ torch.linalg.inv(bottom)


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (5, 3, 3, 6))  # type: ignore[return-value]


def test_uce_right_multiplier_equals_the_formula(vectors: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    weight, c, g, r = vectors
    solve = load_object("methods.uce:solve")
    torch.testing.assert_close(weight @ solve(c, g, r, 0.7, 0.3, 0.5), formula(weight, c, g, r, 0.7, 0.3, 0.5))


def test_uce_limits(vectors: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, c, g, r = vectors
    solve = load_object("methods.uce:solve")
    torch.testing.assert_close(r @ solve(c, g, r, 1.0, 1e9, 0.5).T, r, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(c @ solve(c, g, r, 1e9, 1.0, 0.5).T, g, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(solve(c, c, r, 1.0, 1.0, 0.5), torch.eye(16, dtype=torch.float64))


def test_uce_as_text_and_as_weights_give_the_same_pictures(model: DiffusionModel, context: FitContext) -> None:
    as_text, as_weights = fit("uce", context, [NEON]), fit("uce", context, [NEON], apply="weights")
    assert as_text.weights is None
    assert as_weights.text is None
    torch.testing.assert_close(pictures(model, as_weights), pictures(model, as_text), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(pictures(model, as_text), pictures(model, Erasure()), atol=0.1)


@pytest.mark.parametrize("tokens", ["aligned", "last"])
def test_uce_moves_the_subject_to_its_guide_and_holds_the_rest(tokens: str, model: DiffusionModel, context: FitContext) -> None:
    matrix = fit("uce", context, [NEON], tokens=tokens, erase_scale=1e4).text.matrix
    edited, guide = (model.text_states([text])[0, 1] for text in context.texts(NEON).pairs[0])
    assert (matrix @ edited - guide).norm() < 0.2 * (edited - guide).norm()
    gentle = fit("uce", context, [NEON], tokens=tokens, preserve_scale=1e4).text.matrix
    kept = model.text_states(list(context.texts(NEON).retain[:5])).flatten(0, 1)
    assert (kept @ gentle.T - kept).norm() < 0.01 * kept.norm()


# ESD


def test_esd_trains_the_parts_it_names(model: DiffusionModel) -> None:
    names = load_object("methods.esd:trained_names")
    everything, cross, strict, outside = (set(names(model.unet, kind)) for kind in ("all", "x", "x-strict", "u"))
    assert strict < cross < everything
    assert cross | outside == everything
    assert not cross & outside
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in strict)
    assert len(strict) == 2 * sum(name.endswith("attn2.to_k.weight") for name in everything)
    assert not any("norm" in name.split(".")[-2] for name in everything)


def test_esd_with_eta_zero_has_nothing_to_learn(model: DiffusionModel, context: FitContext) -> None:
    erasure = fit("esd", context, [NEON], negative_guidance=0.0, iterations=1)
    assert erasure.notes["first_and_last_loss"][0] < 1e-9


def test_esd_lowers_its_loss(context: FitContext) -> None:
    losses = fit("esd", context, [NEON], iterations=30, batch=8, trajectories=4, learning_rate=1e-3).notes["first_and_last_loss"]
    assert losses[1] < 0.7 * losses[0]

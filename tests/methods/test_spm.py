"""SPM: what its adapters must keep, the strength that a prompt gives them, and what it trains on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import SLOTS, request_of
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row, encode
from bench.diffusion.sampler import Sampler, sample
from bench.interfaces import Erasure, FitContext, Slots
from bench.registry import load_object, method
from bench.types import Concept

NEON, FISH = Concept("style", "neon"), Concept("object", "fish")
REQUESTS = [request_of("neon", "fish", steps=2), request_of("pop", "key", steps=2)]
adapted_modules, Factors, LowRankAdapters, FacilitatedTransport = (
    load_object(f"methods.common.adapters:{name}") for name in ("adapted_modules", "Factors", "LowRankAdapters", "FacilitatedTransport")
)
QUICK = {"iterations": 1, "trajectories": 1, "denoising_steps": 3, "anchors": 2, "batch": 2, "learning_rate": 0.03}


def fit(context: FitContext, *concepts: Concept, **settings: object) -> Erasure:
    kind = method("spm")
    return kind(kind.Config(**{**QUICK, **settings})).fit(context, concepts)


def latents(model: DiffusionModel, *erasures: Erasure) -> Tensor:
    return sample(model, [Row(request, erasure) for request in REQUESTS for erasure in erasures], torch.float32, SLOTS).latents


def adapter(model: DiffusionModel, seed: int, rank: int = 1, size: float = 0.3) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            size * torch.randn(rank, module.weight.shape[1], generator=generator),
            size * torch.randn(module.weight.shape[0], rank, generator=generator),
        )
        for name, module in adapted_modules(model.unet).items()
    }


def added(adapters: dict[str, object], model: DiffusionModel) -> dict[str, Tensor]:
    """What has to be added to weights to do what the adapters do."""
    own = {name: module.weight for name, module in adapted_modules(model.unet).items()}
    return {f"unet.{name}.weight": (factors.up @ factors.down).view(own[name].shape) for name, factors in adapters.items()}


def test_adapters_are_at_every_linear_and_convolution_that_reads_text_or_its_map(model: DiffusionModel) -> None:
    names = adapted_modules(model.unet)
    assert len(names) == 84  # 7 blocks of 12
    assert sum(name.endswith(("proj_in", "proj_out")) for name in names) == 14
    assert not any("resnets" in name or "norm" in name for name in names)


@pytest.mark.parametrize("rank", [1, 8])
def test_adapters_are_low_rank_weights(rank: int, model: DiffusionModel) -> None:
    first, second = adapter(model, 1, rank, 0.1), adapter(model, 2, rank, 0.1)
    both = Erasure(activations=(LowRankAdapters.of([first, second]),))
    one, two = added(first, model), added(second, model)
    own = {f"unet.{name}": value for name, value in model.unet.named_parameters()}
    with model.weights({name: own[name] + one[name] + two[name] for name in one}):
        wanted = latents(model, Erasure())
    torch.testing.assert_close(latents(model, both), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(wanted, latents(model, Erasure()), atol=0.1)


def test_the_rows_of_a_call_do_not_see_each_other(model: DiffusionModel) -> None:
    one = Erasure(text=FacilitatedTransport(("neon",)), activations=(LowRankAdapters.of([adapter(model, 1)]),))
    two = Erasure(text=FacilitatedTransport(("fish", "pop")), activations=(LowRankAdapters.of([adapter(model, 2), adapter(model, 3)]),))
    wide = Erasure(activations=(LowRankAdapters.of([adapter(model, 4, rank=8)]),))
    erasures = (Erasure(), one, two, wide, replace(one, activations=(LowRankAdapters.of([adapter(model, 5)]),)))
    together = latents(model, *erasures)
    for k, erasure in enumerate(erasures):
        assert torch.equal(together[k :: len(erasures)], latents(model, erasure))
    shared = Sampler(model, torch.float32, SLOTS, share=True).all([Row(request, one) for request in REQUESTS]).latents
    assert torch.equal(shared, latents(model, one))


@pytest.mark.parametrize("rank", [1, 8])
def test_slots_without_an_edit_come_back_bit_for_bit(rank: int) -> None:
    edit = LowRankAdapters(hookpoints=("m",), inputs=(3,), outputs=(4,), down=torch.randn(1, rank, 3), up=torch.randn(1, rank, 4))
    x_out = torch.tensor([0.0, -0.0, 1e-40, -3.0]).expand(2, 5, 4)
    x_in = torch.full((2, 5, 3), -1.0)
    which, zero = torch.tensor([-1, 0]), torch.zeros(2, dtype=torch.int64)
    new = LowRankAdapters.stack([edit]).edit("m", x_in, x_out, Slots(zero, which, zero, zero, torch.ones(2, 1)), {})
    assert torch.equal(new[0].view(torch.int32), x_out[0].view(torch.int32))
    assert not torch.equal(new[1], x_out[1])


def test_gamma_by_hand(model: DiffusionModel) -> None:
    prompt = REQUESTS[0].prompt
    states = model.text_states([prompt, "neon style", "key", "blue pop"]).flatten(1)
    cosine = [float(states[0] @ other / (states[0].norm() * other.norm())) for other in states[1:]]
    assert max(cosine) < 0.99
    cond = FacilitatedTransport(("neon style", "key", "key,fish", "pop style")).encode(model, [prompt], "conditional", 2)[0]
    # "A fish image in neon style.": both tokens of the first text, none of the second, the only one of "fish", one of two.
    pop = float(torch.cosine_similarity(states[0], model.text_states(["pop style"]).flatten(1)[0], dim=0))
    assert cond.adapter_scale.tolist() == pytest.approx([1.0, cosine[1], 1.0, max(pop, 0.5)], abs=1e-5)
    squared = FacilitatedTransport(("key",), power=2).encode(model, [prompt], "conditional", 2)[0]
    assert squared.adapter_scale.tolist() == pytest.approx([cosine[1] ** 2], abs=1e-5)


def test_the_unconditional_half_has_the_prompts_gamma(model: DiffusionModel) -> None:
    rows = [Row(request, Erasure(text=FacilitatedTransport(("neon",)))) for request in REQUESTS]
    for conditions in encode(model, rows):
        assert torch.equal(conditions[0].adapter_scale, conditions[1].adapter_scale)
    assert not torch.equal(*(conditions[1].adapter_scale for conditions in encode(model, rows)))
    assert all(not len(cond.adapter_scale) for cond in encode(model, [Row(REQUESTS[0], Erasure())])[0])


def test_without_training_nothing_changes(model: DiffusionModel, context: FitContext) -> None:
    erasure = fit(context, NEON, iterations=0)
    assert erasure.weights is None
    assert torch.equal(latents(model, erasure), latents(model, Erasure()))
    # At first `up` is zero: what is left of the loss is erasing alone, however much the anchors weigh.
    plain, heavy = (fit(context, NEON, iterations=1, anchor_strength=weight).notes["first_and_last_loss"] for weight in (0.0, 1e4))
    assert heavy["style:neon"][0] == pytest.approx(plain["style:neon"][0], abs=2e-6)
    assert plain["style:neon"][0] > 1e-4


def test_the_first_loss_is_the_formula(model: DiffusionModel, context: FitContext) -> None:
    """Of all states at once: with `up` = 0 it is the mean of (2 (ε_∅ − ε_c))²."""
    walk, predict = (load_object(f"methods.common.training:{name}") for name in ("walk", "predict"))
    bank = walk(context, "neon", lambda none, text: 2 * none - text, 2, 3, 3.0, torch.Generator().manual_seed(0))
    own = predict(context, model.unet, *bank[:4])
    empty = model.text_states([""]).expand(len(own), -1, -1)
    none = predict(context, model.unet, bank.latents, bank.timesteps, empty, bank.pooled)
    torch.testing.assert_close(bank.target - own, 2 * (none - own), rtol=1e-3, atol=1e-4)


def test_anchors_are_of_the_targets_size_and_seldom_like_it() -> None:
    random_texts = load_object("methods.spm:random_texts")
    target = torch.tensor([[3.0, 4.0]])
    found = random_texts(target, 2000, torch.Generator().manual_seed(0))
    norms, cosine = found.flatten(1).norm(dim=1), torch.cosine_similarity(found.flatten(1), target, dim=1)
    assert found.shape == (2000, 1, 2)
    assert 4.0 <= float(norms.min()) < 4.05
    assert 5.95 < float(norms.max()) <= 6.0
    # Density of the angle ∝ 1 − cos where cos > 0 and 1 elsewhere (more than always is always).
    share = float((cosine > 0).float().mean())
    assert share == pytest.approx((torch.pi - 2) / (2 * torch.pi - 2), abs=0.03)
    assert random_texts(torch.empty(0), 3, torch.Generator()).shape == (3, 0)


def test_adapters_of_several_concepts_are_those_of_each(model: DiffusionModel, context: FitContext) -> None:
    both, neon, fish = fit(context, NEON, FISH), fit(context, NEON), fit(context, FISH)
    edit = both.activations[0]
    assert torch.equal(edit.down, torch.cat([neon.activations[0].down, fish.activations[0].down]))
    kind = method("spm")
    later = kind(kind.Config(**QUICK)).fit_after(context, neon, [FISH])
    assert torch.equal(later.activations[0].up, edit.up)
    assert later.text == both.text
    assert torch.equal(latents(model, later), latents(model, both))


def test_it_lowers_its_loss(context: FitContext) -> None:
    settings = {"iterations": 24, "batch": 4, "denoising_steps": 2, "anchors": 1, "anchor_strength": 0.1, "learning_rate": 0.02}
    first, last = fit(context, FISH, **settings).notes["first_and_last_loss"]["object:fish"]
    assert last < 0.7 * first


def test_the_published_code_names_concepts_by_their_ids(context: FitContext) -> None:
    concept = Concept("style", "Van_Gogh")
    sampler = load_object("methods.spm:PUBLISHED_SAMPLER")
    published = FacilitatedTransport(("Van_Gogh",), 2, sampler["negative_prompt"])
    for preset, text in (("corrected", FacilitatedTransport(("Van Gogh",))), ("published-code", published)):
        assert fit(context, concept, preset=preset, iterations=0, denoising_steps=2).text == text


@pytest.mark.parametrize("given", [{"guidance_scale": 7.5}, {"preset": "published-code"}])
def test_the_published_sampler_has_a_guidance_scale_and_a_negative_prompt_of_its_own(
    given: dict[str, object], model: DiffusionModel, context: FitContext
) -> None:
    untrained = fit(context, NEON, iterations=0, negative_prompt="a key", **given)
    wanted = sample(
        model, [Row(replace(request, guidance_scale=7.5), Erasure(text=load_object("methods.negative_prompt:NegativeText")("a key")))
                for request in REQUESTS], torch.float32, SLOTS,
    ).latents  # fmt: skip
    torch.testing.assert_close(latents(model, untrained), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, latents(model, Erasure()), atol=0.05)
    plain = latents(model, fit(context, NEON, iterations=0))
    assert torch.equal(plain, latents(model, Erasure())), "corrected: the suite's sampler"
    beside = latents(model, untrained, Erasure(), fit(context, NEON, iterations=0, guidance_scale=2.0))
    assert torch.equal(beside[::3], latents(model, untrained)), "rows with other scales beside it"
    assert torch.equal(beside[1::3], plain)

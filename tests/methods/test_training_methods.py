"""What the methods that train promise: which weights move, by which gradient, and what their named defects do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.errors import BenchError
from bench.interfaces import FitContext
from bench.registry import load_object
from bench.types import Concept
from methods.ca import CA, CAConfig, _begin_mark_fixed
from methods.common.finetuning import Noisy, Student, Texts, parameter_names
from methods.common.forgetting import Forgetting, ForgettingConfig
from methods.concept_prune import skilled
from methods.ediff import EDiff, EDiffConfig, forget_weight
from methods.fmn import FMN, FMNConfig, _watching, token_places
from methods.salun import SalUn, SalUnConfig
from methods.shs import SHS, SHSConfig, project

NEON, FISH = Concept("style", "neon"), Concept("object", "fish")
FEW = {"pictures": 4, "batch": 2, "iterations": 2, "learning_rate": 1e-3}


def changed(erasure: object, model: DiffusionModel) -> dict[str, Tensor]:
    """Where each saved weight differs from the model's own."""
    own = {f"unet.{name}": value for name, value in model.unet.named_parameters()}
    return {name: value != own[name] for name, value in erasure.weights.values.items()}  # type: ignore[attr-defined]


def test_noise_is_that_of_the_schedule(context: FitContext) -> None:
    student = Student(context, [])
    latents = torch.randn(6, *context.model.latent_shape)
    at = student.noisy(latents)
    noise = at.target
    expected = context.model.scheduler.add_noise(latents, noise, at.timesteps)
    torch.testing.assert_close(at.latents, expected)
    assert set(student.noisy(latents, 7).timesteps.tolist()) == {7}
    velocity = context.model.scheduler.get_velocity(latents, noise, at.timesteps)
    assert not torch.allclose(velocity, noise)


@pytest.mark.parametrize("part", ["x", "x-strict", "u", "all"])
def test_parts_divide_the_network(model: DiffusionModel, part: str) -> None:
    names = set(parameter_names(model.unet, part))  # type: ignore[arg-type]
    everything = set(parameter_names(model.unet, "all"))
    assert names <= everything
    assert {"x": all("attn2" in name for name in names), "u": not any("attn2" in name for name in names)}.get(part, True)
    if part == "x-strict":
        assert names < set(parameter_names(model.unet, "x"))
    assert set(parameter_names(model.unet, "x")) | set(parameter_names(model.unet, "u")) == everything


@pytest.mark.parametrize("mask", ["salient", "least-salient"])
def test_salun_changes_only_the_share_with_the_largest_gradients(context: FitContext, mask: str) -> None:
    config = SalUnConfig(**FEW, mask=mask, mask_density=0.25, mask_batches=2)
    erasure = SalUn(config).fit(context, [FISH])
    moved = changed(erasure, context.model)
    flat = torch.cat([own.flatten() for own in moved.values()])
    assert 0 < flat.float().mean() <= 0.25 + 1e-6, "what the mask keeps out is bit-equal"

    student = Student(context, parameter_names(context.model.unet, "x"))
    task = Forgetting.begin(config, context, [FISH], student)
    total: list[Tensor] = []
    for _ in range(2):
        at, texts, _ = task.to_forget()
        guided = 8.5 * student.predict(at, texts) - 7.5 * student.predict(at, Texts.of(context.model, ["", ""]))
        (-(guided - at.target).square().mean()).backward()
    total = [weight.grad.abs().flatten() for weight in student.weights.values()]
    saliency = torch.cat(total)
    count = round(0.25 * len(saliency))
    edge = saliency.topk(count, largest=mask == "salient").values[-1]
    outside = saliency < edge if mask == "salient" else saliency > edge
    assert not (flat & outside).any()
    # Where a weight may move, its gradient was nearly never zero.
    assert flat.sum() > 0.9 * count


def test_salun_as_published_masks_nothing(context: FitContext) -> None:
    published = SalUnConfig(preset="published-code", pictures=8, batch=6)
    assert (published.mask, published.mask_applied, published.mask_guidance, published.data) == ("least-salient", False, 0.0, "first-four")
    assert SalUnConfig(preset="published-code", data="all").data == "all", "what is given counts"
    erasure = SalUn(published.model_copy(update={"iterations": 2, "learning_rate": 1e-3})).fit(context, [FISH])
    moved = torch.cat([own.flatten() for own in changed(erasure, context.model).values()])
    assert moved.float().mean() > 0.9


@pytest.mark.parametrize("config", [SalUnConfig, EDiffConfig, SHSConfig])
def test_published_scripts_train_on_four_pictures(config: type[ForgettingConfig], context: FitContext) -> None:
    def drawn(config: ForgettingConfig) -> set[tuple[float, ...]]:
        task = Forgetting.begin(config, context, [FISH], Student(context, []))
        seen = set()
        for _ in range(6):
            _, texts, _ = task.to_forget()
            seen |= {tuple(state.flatten()[::97].tolist()) for state in texts.states}
        return seen

    assert len(drawn(config(preset="published-code", pictures=8, batch=6))) <= 4 < len(drawn(config(pictures=8, batch=6)))


def test_what_is_retained_shows_nothing_that_is_forgotten(context: FitContext) -> None:
    task = Forgetting.begin(SalUnConfig(pictures=40), context, [NEON, FISH], Student(context, []))
    assert 0 < len(task.retain.latents) < 80, "pictures of fish are retained for neon, and left out"
    assert len(task.forget.latents) == 80
    alone = Forgetting.begin(SalUnConfig(pictures=40), context, [NEON], Student(context, []))
    assert len(alone.retain.latents) == 40


def test_ediff_weighs_so_that_forgetting_never_stops() -> None:
    of_retain, of_forget = [torch.tensor([3.0, 0.0])], [torch.tensor([-1.0, 1.0])]
    # ⟨∇L_r, ∇q⟩ = −3, ‖∇q‖² = 2: λ = 0.5 + 1.5.
    assert forget_weight(of_retain, of_forget, 0.5) == pytest.approx(2.0)
    step = of_retain[0] + 2.0 * of_forget[0]
    assert step @ of_forget[0] == pytest.approx(0.5 * 2.0), "along it q falls by η ‖∇q‖²"
    assert forget_weight([torch.tensor([-3.0, 3.0])], of_forget, 0.5) == 0.0, "what helps both needs no weight"
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = torch.randn(2, 12, generator=generator)
        weight = forget_weight([a], [b], 0.3)
        assert (a + weight * b) @ b >= 0.3 * b @ b - 1e-4


def test_ediff_weights_differ(context: FitContext) -> None:
    adaptive, fixed = (EDiff(EDiffConfig(**FEW, weight=weight)).fit(context, [FISH]) for weight in ("adaptive", "fixed"))
    name = next(iter(adaptive.weights.values))
    assert not torch.equal(adaptive.weights.values[name], fixed.weights.values[name])


def test_shs_draws_the_top_share_of_cross_attention_anew(context: FitContext) -> None:
    erasure = SHS(SHSConfig(**{**FEW, "iterations": 0}, sparsity=0.9, score_batches=2)).fit(context, [FISH])
    moved = changed(erasure, context.model)
    inner, outer = ([own.flatten() for name, own in moved.items() if ("attn2" in name) is side] for side in (True, False))
    share = torch.cat(inner).float().mean()
    assert share == pytest.approx(0.1, abs=0.001)
    assert erasure.notes["drawn_anew"] == int(torch.cat(inner).sum())
    assert not torch.cat(outer).any()
    new = torch.cat([erasure.weights.values[name][own] for name, own in moved.items() if own.ndim > 1])
    assert float(new.std()) == pytest.approx(0.02, rel=0.1)


def test_shs_projection_by_hand() -> None:
    memory = torch.tensor([1.0, 0.0])
    assert torch.equal(project(torch.tensor([2.0, 1.0]), memory, 0.5), torch.tensor([2.0, 1.0])), "agreeing gradients stay"
    # ⟨g, m⟩ = −2: v = max(2, 0.5), the product becomes zero; with a margin of 3 it becomes positive.
    assert torch.equal(project(torch.tensor([-2.0, 1.0]), memory, 0.5), torch.tensor([0.0, 1.0]))
    assert torch.equal(project(torch.tensor([-2.0, 1.0]), memory, 3.0), torch.tensor([1.0, 1.0]))


def test_shs_projects_while_it_trains(context: FitContext) -> None:
    plain, projected = (
        SHS(SHSConfig(**FEW, train_method="x", project=on, project_every=1, score_batches=1)).fit(context, [FISH]) for on in (False, True)
    )
    name = next(iter(plain.weights.values))
    assert not torch.equal(plain.weights.values[name], projected.weights.values[name])


def test_ca_captions_and_those_of_the_published_configuration(context: FitContext) -> None:
    shown, anchors = CA(CAConfig(pictures=6)).captions(context, FISH)
    assert all("fish" in text for text in shown)
    assert [text.replace("fish", "nothing") for text in shown] == anchors
    defect, kept = CA(CAConfig(pictures=6, preset="published-code")).captions(context, FISH)
    assert kept == shown, "its anchors show the object"
    assert defect[0] == shown[0].rstrip(".") + ", in the style of An image of fish."
    assert CA(CAConfig(pictures=6, preset="published-code")).captions(context, NEON) == CA(CAConfig(pictures=6)).captions(context, NEON)


def test_ca_gives_the_begin_mark_no_gradient(context: FitContext) -> None:
    model, student = context.model, Student(context, parameter_names(context.model.unet, "x-strict"))
    texts = Texts.of(model, ["An image of fish."])
    first = texts.states.clone()
    first[:, 1:] = 0
    at = student.noisy(torch.randn(1, *model.latent_shape))

    def gradients() -> Tensor:
        return torch.cat([own.flatten() for own in student.gradient(student.predict(at, Texts(first, texts.pooled)).square().sum())])

    assert gradients().abs().max() > 0
    with _begin_mark_fixed(model.unet):
        assert gradients().abs().max() == 0
    assert gradients().abs().max() > 0


def test_fmn_sees_the_attention_that_the_layers_pay(context: FitContext) -> None:
    model = context.model
    student, text = Student(context, []), "A fish image in neon style."
    texts, places = Texts.of(model, [text]), token_places(model, text, "fish", padding=False)[None]
    at = student.noisy(torch.randn(1, *model.latent_shape))
    expected: list[Tensor] = []
    layers = [module for name, module in model.unet.named_modules() if name.endswith("attn2")]

    def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        query, key = module.to_q(inputs[0]), module.to_k(kwargs["encoder_hidden_states"])
        scores = module.get_attention_scores(module.head_to_batch_dim(query), module.head_to_batch_dim(key))
        expected.append((scores * places[0]).flatten())

    with _watching(model.unet) as attention:
        attention.begin(places)
        student.predict(at, texts)
        seen = list(attention.seen)
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in layers]
    student.predict(at, texts)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(layers)
    for own, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-6)


def test_fmn_tokens_of_a_caption(model: DiffusionModel) -> None:
    text = "A fish image in neon style."
    plain, padded = (token_places(model, text, "fish", padding) for padding in (False, True))
    ids = model.tokenize([text])[0]
    assert model.tokenizer.decode(ids[plain]).strip() == "fish"
    end = ids.tolist().index(model.tokenizer.eos_token_id)
    assert padded[end:].all()
    assert torch.equal(padded[:end], plain[:end])
    with pytest.raises(BenchError, match="is not in the caption"):
        token_places(model, text, "house", padding=True)


def test_fmn_takes_attention_away(context: FitContext) -> None:
    erasure = FMN(FMNConfig(pictures=4, batch=4, iterations=8, learning_rate=3e-3)).fit(context, [FISH])
    first, last = erasure.notes["first_and_last_loss"]
    assert last < 0.9 * first


def test_skilled_weights_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [3.0, -2.0, 1.0]])
    norms = torch.tensor([[[1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]]])
    assert not skilled(weight, norms, 0.34).any(), "equal norms: nothing belongs to the concept"
    norms = torch.tensor([[[1.0, 4.0, 1.0]], [[1.0, 1.0, 1.0]]])
    assert skilled(weight, norms, 0.34).tolist() == [[False, True, False], [False, True, False]]
    # At a second step the first column fires: all skilled weights of both steps.
    norms = torch.tensor([[[1.0, 4.0, 1.0], [9.0, 1.0, 1.0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    assert skilled(weight, norms, 0.34).tolist() == [[True, True, False], [True, True, False]]


def test_concept_prune_only_zeroes_feed_forward_weights(context: FitContext) -> None:
    kind = load_object("methods.concept_prune:METHOD")
    erasure = kind(kind.Config(pictures=2, sparsity=0.05, first_steps=0.5)).fit(context, [NEON])
    moved = changed(erasure, context.model)
    assert all("ff.net.2" in name for name in moved)
    assert 0 < erasure.notes["pruned_share"] < 0.2
    assert all(not erasure.weights.values[name][own].any() for name, own in moved.items())


def test_an_empty_student_is_the_model(context: FitContext) -> None:
    student, texts = Student(context, []), Texts.of(context.model, ["A fish image in neon style."])
    at = Noisy(torch.randn(1, *context.model.latent_shape), torch.tensor([500]), torch.zeros(1))
    torch.testing.assert_close(student.predict(at, texts), student.frozen(at, texts))

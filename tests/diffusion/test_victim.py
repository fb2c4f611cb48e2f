"""The attacker's path through an erased model: the sampler's own predictions, with gradients that finite differences confirm."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
import torch
from cheating_edits import BLOCK, Bank, Shift
from torch import Tensor

from bench.api import (
    ClassifierFree,
    Concept,
    Cond,
    DiffusionModel,
    Erasure,
    FitContext,
    PlainText,
    Role,
    Slots,
    SoftText,
    TextEdit,
    learned_name,
)
from bench.config import method_config
from bench.diffusion import victim as victim_module
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.diffusion.schedule import DDIMSchedule
from bench.diffusion.solvers import initial_noise
from bench.diffusion.victim import NoGradientError, Victim
from bench.errors import BenchError
from bench.registry import method
from bench.suites.minicanvas import SUITE
from methods.common.adapters import LowRankAdapters, adapted_modules
from methods.sae import bank
from methods.sae.autoencoder import load_sae

FISH = Concept("object", "fish")
NAMES = ["none", "uce", "rece", "safree", "seot", "sld", "negative-prompt", "saeuron", "saeuron-detect", "spm"]


VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "saeuron, published error": ("saeuron", {"error": "published-code"}), "saeuron, no error": ("saeuron", {"error": "none"}),
    "saeuron-detect, mean": ("saeuron-detect", {"source": "mean"}), "saeuron-detect, nearest": ("saeuron-detect", {"source": "nearest"}),
    "saeuron-detect, dilated": ("saeuron-detect", {"dilation": 2}),
}  # fmt: skip


@pytest.fixture(scope="module")
def erasures(context: FitContext) -> dict[str, Erasure]:
    found = {}
    for name, (base, settings) in {**{name: (name, {}) for name in NAMES}, **VARIANTS}.items():
        kind = method(base)
        own = {**SUITE.method_settings.get(base, {}), **settings, **(kind.quick if name == "spm" else {})}
        if name == "sld":  # stronger, its safety term is a step of a width of 1/5000, which finite differences see as a jump
            own = {"strength": "weak"}
        found[name] = kind(method_config(base, kind.Config, own)).fit(context, [FISH])
    strong = found["spm"].activations[0]
    assert isinstance(strong, LowRankAdapters)
    up = 0.02 * torch.randn(strong.up.shape, generator=torch.Generator().manual_seed(0))
    return {**found, "spm": replace(found["spm"], activations=(replace(strong, up=up),))}


def request(scale: float, steps: int = 20, prompt: str = ""):
    found = SUITE.request("neon", "fish", 1, steps)
    return replace(found, guidance_scale=scale, prompt=prompt or found.prompt)


def soft(model: DiffusionModel, text: str, embeds: Tensor | None = None) -> SoftText:
    ids = model.tokenize([text])[0]
    return SoftText(text, ids, model.text_encoder.get_input_embeddings().weight[ids].detach() if embeds is None else embeds)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_the_samplers(name: str, model: DiffusionModel, erasures: dict[str, Erasure]) -> None:
    """One DDIM step of the sampler is linear in the prediction: it must be the victim's, at the same latent and timestep."""
    own = name in ("sld", "negative-prompt")
    erasure = erasures[name]
    if name == "sld":  # with a safety term from the first step on
        erasure = replace(erasure, guidance=replace(erasure.guidance, warmup=0))  # type: ignore[type-var]
    row = Row(request(4.0 if own else 1.0, steps=20), erasure)
    schedule = DDIMSchedule.of(model.scheduler, 20)
    # The first of 20 steps: all that follows is cut off by looking at the difference between two trajectories' first steps.
    noise = initial_noise([row.request], model.latent_shape)
    seen: list[Tensor] = []
    from bench.diffusion.call import Call

    real = Call.run

    def run(self, unet):
        receipt = real(self, unet)
        if not seen:
            seen.append(receipt.after[0].clone())
        return receipt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Call, "run", run)
        sample(model, [row], torch.float32, 4)
    expected = (seen[0] - schedule.x_scale[0] * noise[0]) / schedule.out_scale[0]
    with torch.no_grad():
        found = Victim(model, [row], torch.float32).predict([0], [soft(model, row.request.prompt)], noise, schedule.timesteps[:1])
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def double(model: DiffusionModel) -> DiffusionModel:
    """The model in float64."""
    found = copy.deepcopy(model)
    found.text_encoder.double()
    found.unet.double()
    return found


def in_double(erasure: Erasure) -> Erasure:
    """With every table of its parts in float64."""
    parts = [replace(part, **_doubled(part)) for part in erasure.activations]
    text = erasure.text and replace(erasure.text, **_doubled(erasure.text)) if is_dataclass(erasure.text) else erasure.text
    return replace(erasure, text=text, activations=tuple(parts))


def _doubled(part: object) -> dict[str, Tensor]:
    own = ((field.name, getattr(part, field.name)) for field in fields(part))  # type: ignore[arg-type]
    return {name: value.double() for name, value in own if isinstance(value, Tensor) and value.is_floating_point()}


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_gradients_are_those_of_finite_differences(
    name: str, double: DiffusionModel, erasures: dict[str, Erasure], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, without what goes straight through thresholds, whose true derivative is zero almost everywhere."""
    monkeypatch.setattr(bank, "_soft", lambda z, thresholds: torch.zeros_like(z))
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # what is held in float32 at the least
    monkeypatch.setattr(bank, "load_sae", lambda *where: copy.deepcopy(load_sae(*where)).double())
    row = Row(request(4.0), in_double(erasures[name]))
    victim = Victim(double, [row], torch.float64)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(1, *double.latent_shape, generator=generator).double()
    text = soft(double, row.request.prompt)
    weights = torch.randn(noisy.shape, generator=generator)

    def value(embeds: Tensor) -> Tensor:
        return (victim.predict([0], [soft(double, row.request.prompt, embeds)], noisy, torch.tensor([501])) * weights).sum()

    if name != "none" and row.erasure.weights is None:
        with torch.no_grad():
            plain = Victim(double, [replace(row, erasure=Erasure())], torch.float64).predict([0], [text], noisy, torch.tensor([501]))
            assert not torch.allclose(victim.predict([0], [text], noisy, torch.tensor([501])), plain), "the edit acts where it is tested"

    leaf = text.embeds.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    direction = gradient / gradient.norm()
    step = 1e-6 * float(text.embeds.norm())
    with torch.no_grad():
        measured = (value(text.embeds + step * direction) - value(text.embeds - step * direction)) / (2 * step)
    assert value(leaf).dtype == torch.float64
    assert float(gradient.norm()) > 1e-3
    assert float(measured) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


@pytest.mark.parametrize("name", ["saeuron", "saeuron-detect"])
def test_thresholds_have_a_gradient_and_it_points_away_from_detection(
    name: str, model: DiffusionModel, erasures: dict[str, Erasure], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row(request(4.0), erasures[name])
    noisy = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    leaf = soft(model, row.request.prompt).embeds.clone().requires_grad_()

    def both(gradient: str) -> tuple[Tensor, Tensor]:
        victim = Victim(model, [row], torch.float32, gradient)
        found = victim.predict([0], [soft(model, row.request.prompt, leaf)], noisy, torch.tensor([951]), place=0)
        return found.detach(), torch.autograd.grad(found.square().sum(), leaf)[0]

    value, adaptive = both("adaptive")
    same, published = both("published")
    torch.testing.assert_close(value, same, msg="the first of the ascending list is told as the noisiest step, which 951 is")
    monkeypatch.setattr(bank, "_soft", lambda z, thresholds: torch.zeros_like(z))
    again, exact = both("adaptive")
    assert torch.equal(value, again), "what goes straight through changes no value"
    assert not torch.allclose(adaptive, exact, rtol=1e-3)
    assert not torch.allclose(exact, published, rtol=1e-3), "the published attack's gradient ends at the hook points"


def test_goals_attacked_together_do_not_see_each_other(model: DiffusionModel, erasures: dict[str, Erasure]) -> None:
    """Predictions and gradients of rows of five methods in one call are those of each alone, up to rounding."""
    names = ["uce", "sld", "saeuron", "saeuron-detect", "spm"]
    rows = [Row(replace(request(4.0), seed=k), erasures[name]) for k, name in enumerate(names, 1)]
    noisy = torch.randn(len(rows), *model.latent_shape, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([951, 701, 501, 301, 51])
    leaves = [soft(model, row.request.prompt).embeds.clone().requires_grad_() for row in rows]
    texts = [soft(model, row.request.prompt, leaf) for row, leaf in zip(rows, leaves, strict=True)]
    together = Victim(model, rows, torch.float32).predict(range(len(rows)), texts, noisy, times)
    gradients = torch.autograd.grad(together.square().sum(), leaves)
    for k, row in enumerate(rows):
        alone = Victim(model, [row], torch.float32).predict([0], texts[k : k + 1], noisy[k : k + 1], times[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(alone.square().sum(), leaves[k])
        torch.testing.assert_close(gradient, gradients[k], rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("name", ["saeuron", "saeuron-detect", "spm"])
def test_activations_made_again_give_the_same_gradient(
    name: str, model: DiffusionModel, erasures: dict[str, Erasure], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of large pictures, whose activations would not fit in memory; an edit whose gate opens must not see it open twice, and one
    within a block must act again."""
    row = Row(request(4.0), erasures[name])
    noisy = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))

    def gradient() -> Tensor:
        leaf = soft(model, row.request.prompt).embeds.clone().requires_grad_()
        found = Victim(model, [row], torch.float32).predict([0], [soft(model, row.request.prompt, leaf)], noisy, torch.tensor([951]))
        return torch.autograd.grad(found.square().sum(), leaf)[0]

    kept = gradient()
    monkeypatch.setattr(victim_module, "LARGE", 0)
    torch.testing.assert_close(gradient(), kept)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.unet.modules())


def test_published_tells_edits_another_step(model: DiffusionModel, erasures: dict[str, Erasure]) -> None:
    """The k-th of an ascending list as the k-th, noisiest first, sampling step."""
    row = Row(request(4.0), erasures["saeuron"])
    victim = Victim(model, [row], torch.float32, "published")
    times = victim.schedule.timesteps
    told = [int(victim._told(torch.tensor([t]), place)[0]) for place, t in enumerate((10, 30, 50))]
    assert told == times[:3].tolist()
    assert int(Victim(model, [row], torch.float32)._told(torch.tensor([10]), 0)[0]) == 10


def test_a_soft_text_is_the_text_that_its_tokens_spell(model: DiffusionModel) -> None:
    text = "A fish image in neon style."
    (plain,), (own,) = model.encode([text]), model.encode([soft(model, text)])
    torch.testing.assert_close(plain.states, own.states)
    two = [soft(model, text), soft(model, text)]
    assert two[0] != two[1]
    assert len(dict.fromkeys(two)) == 2, "goals with the same words keep gradients of their own"


def test_learned_tokens_take_one_place(model: DiffusionModel) -> None:
    table = model.text_encoder.get_input_embeddings().weight
    fish = int(model.tokenizer("fish").input_ids[1])
    name = learned_name(table[fish])
    assert name == learned_name(table[fish].clone())
    model.learned[name] = table[fish].clone()
    plain, learned = "A fish image in neon style.", f"A {name} image in neon style."
    assert len(model.tokenize([learned])[0]) == len(model.tokenize([plain])[0])
    torch.testing.assert_close(model.encode([learned])[0].states, model.encode([plain])[0].states)
    with pytest.raises(BenchError, match="Nobody knows the token <learned-abcdefabcdef>"):
        model.encode(["A <learned-abcdefabcdef> image"])


def test_noise_is_added_as_the_scheduler_does(model: DiffusionModel) -> None:
    row = Row(request(4.0), Erasure())
    victim = Victim(model, [row], torch.float32)
    latents, noise = torch.randn(2, 3, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([1, 300, 990])
    torch.testing.assert_close(victim.noised(latents, times, noise), model.scheduler.add_noise(latents, noise, times))
    assert victim.target(latents, times, noise) is noise
    other = copy.copy(model)
    other.scheduler = type(model.scheduler).from_config(model.scheduler.config, prediction_type="v_prediction")
    velocity = Victim(other, [row], torch.float32).target(latents, times, noise)
    torch.testing.assert_close(velocity, model.scheduler.get_velocity(latents, noise, times))


@dataclass(frozen=True)
class Deaf(TextEdit):
    """Makes a text of its own of what it is given."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        return PlainText().encode(model, [text.replace("fish", "nothing") for text in texts], role, steps)


def test_an_edit_without_a_gradient_is_named(model: DiffusionModel) -> None:
    row = Row(request(4.0), Erasure(text=Deaf()))
    text = soft(model, row.request.prompt)
    text.embeds.requires_grad_()
    with pytest.raises(NoGradientError, match="No gradient goes through Deaf"):
        Victim(model, [row], torch.float32).predict([0], [text], torch.zeros(1, *model.latent_shape), torch.tensor([500]))
    assert adapted_modules(model.unet)


class DetachedBank(Bank):
    """The slots without an edit keep their gradient."""

    def edited(self, x_out: Tensor, slots: Slots) -> Tensor:
        return super().edited(x_out, slots).detach()


class Detached(Shift):
    made_of = DetachedBank


class DetachedGuidance(ClassifierFree):
    def combine(self, eps: Tensor, step: Tensor, scale: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().combine(eps.detach(), step, scale, state)


@pytest.mark.parametrize(
    ("erasure", "name"),
    [(Erasure(activations=(Detached((BLOCK,), 1.0),)), "DetachedBank"), (Erasure(guidance=DetachedGuidance()), "DetachedGuidance")],
)
@pytest.mark.parametrize("large", [False, True])
def test_what_detaches_is_named(erasure: Erasure, name: str, large: bool, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victim_module, "LARGE", 0 if large else 10**9)
    row = Row(request(4.0), erasure)
    text = soft(model, row.request.prompt)
    text.embeds.requires_grad_()
    call = [0], [text], torch.zeros(1, *model.latent_shape), torch.tensor([500])
    with pytest.raises(NoGradientError, match=f"No gradient goes through {name}"):
        Victim(model, [row], torch.float32).predict(*call)
    if erasure.activations:
        Victim(model, [row], torch.float32, "published").predict(*call)  # which means to detach
        honest = Row(row.request, Erasure(activations=(Shift((BLOCK,), 1.0),)))
        assert Victim(model, [honest], torch.float32).predict(*call).requires_grad

"""What training methods minimise, value and gradient, against their formulas written out.

The weights are moved off the model's first, so that what the student predicts, and what the frozen model, are not the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import methods.esd
import methods.spm
from bench.interfaces import FitContext
from bench.registry import method
from bench.types import Concept
from methods.ca import _begin_mark_fixed
from methods.common.finetuning import Noisy, Student, Texts, parameter_names
from methods.common.forgetting import Forgetting
from methods.ediff import EDiffConfig, forget_weight
from methods.salun import SalUnConfig
from methods.shs import SHS, SHSConfig

FISH = Concept("object", "fish")
FEW = {"pictures": 4, "batch": 3, "iterations": 1}


class CaughtError(Exception):
    """Ends a fit where it would begin to train."""


@dataclass
class Caught:
    """A method's loss on one batch, and what the batch was."""

    context: FitContext
    student: Student
    value: Tensor
    gradient: list[Tensor]
    drawn: list[tuple[Tensor, Noisy]]
    """Latents without and with noise, in the order of drawing."""

    def predict(self, at: Noisy, texts: list[str], frozen: bool = False) -> Tensor:
        """Of the trained weights, or of the model's own."""
        weights = {} if frozen else self.student.weights
        states = Texts.of(self.context.model, texts).states
        return functional_call(self.context.model.unet, weights, (at.latents, at.timesteps, states)).sample

    def batch(self, latents: Tensor) -> tuple[Noisy, list[int]]:
        """What was drawn of these pictures, and which."""
        for clean, at in self.drawn:
            same = (clean[:, None] == latents[None]).flatten(2).all(2)
            if same.any(1).all():
                return at, same.float().argmax(1).tolist()
        raise AssertionError("nothing was drawn of them")

    def holds(self, expected: Tensor) -> None:
        """That the loss is what it should be, and that it moves the weights the same way."""
        torch.testing.assert_close(self.value, expected.detach(), rtol=1e-4, atol=1e-7)
        for own, wanted in zip(self.gradient, gradient(expected, self.student), strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max()) + 1e-9)


def gradient(loss: Tensor, student: Student) -> list[Tensor]:
    """By weight, zero of those that the loss does not depend on."""
    return list(torch.autograd.grad(loss, list(student.weights.values()), materialize_grads=True))


def caught(monkeypatch: pytest.MonkeyPatch, context: FitContext, name: str, **settings: Any) -> Caught:
    """The loss of a method that trains a `Student`."""
    found: list[Caught] = []
    drawn: list[tuple[Tensor, Noisy]] = []
    noisy = Student.noisy

    def recorded(self: Student, latents: Tensor, timestep: int | None = None) -> Noisy:
        at = noisy(self, latents, timestep)
        drawn.append((latents, at))
        return at

    def train(self: Student, loss: Callable[[], Tensor], *args: Any, **kwargs: Any) -> None:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in self.weights.values():
                weight.add_(0.3 * weight.abs().mean() * torch.randn(weight.shape, generator=generator))
        drawn.clear()
        value = loss()
        found.append(Caught(context, self, value.detach(), gradient(value, self), list(drawn)))
        raise CaughtError

    monkeypatch.setattr(Student, "noisy", recorded)
    monkeypatch.setattr(Student, "train", train)
    kind = method(name)
    with pytest.raises(CaughtError):
        kind(kind.Config(**FEW, **settings)).fit(context, [FISH])
    return found[0]


def forget_and_retain(own: Caught) -> tuple[Tensor, Tensor]:
    """`‖ε_θ(z_f, c) − sg ε_θ(z_f, c_anchor)‖²` and the diffusion loss of what is retained."""
    shown, others = (own.context.examples(FISH, FEW["pictures"], of) for of in (True, False))
    at, which = own.batch(shown.latents)
    predicted = own.predict(at, [shown.prompts[k] for k in which])
    anchored = own.predict(at, [shown.anchors[k] for k in which]).detach()
    beside, which = own.batch(others.latents)
    retained = own.predict(beside, [others.prompts[k] for k in which])
    return (predicted - anchored).square().mean(), (retained - beside.target).square().mean()


def test_salun(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    own = caught(monkeypatch, context, "salun", retain_weight=0.4, mask_applied=False)
    forget, retain = forget_and_retain(own)
    own.holds(forget + 0.4 * retain)


def test_shs(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    own = caught(monkeypatch, context, "shs", forget_weight=0.3, score_batches=1)
    forget, retain = forget_and_retain(own)
    own.holds(retain + 0.3 * forget)


def test_ediff(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    own = caught(monkeypatch, context, "ediff", weight="fixed", forget_weight=0.3)
    forget, retain = forget_and_retain(own)
    own.holds(retain + 0.3 * forget)


def test_ediff_with_its_own_weight(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    own = caught(monkeypatch, context, "ediff", descent=2.0)
    forget, retain = forget_and_retain(own)
    weights = list(own.student.weights.values())
    of_forget, of_retain = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (forget, retain))
    weight = forget_weight(of_retain, of_forget, 2.0)
    assert weight > 1
    own.holds(retain + weight * forget)


@pytest.mark.parametrize(("variant", "teacher"), [("model", "current"), ("model", "frozen"), ("noise", "current")])
def test_ca(context: FitContext, monkeypatch: pytest.MonkeyPatch, variant: str, teacher: str) -> None:
    """Pictures of the anchor, whose caption with the concept is to predict what the anchor's does, or the noise."""
    own = caught(monkeypatch, context, "ca", variant=variant, teacher=teacher)
    shown, anchors = map(list, zip(*context.captions(FISH, FEW["pictures"]), strict=True))
    at, which = own.batch(context.generate(anchors))
    wanted = own.predict(at, [anchors[k] for k in which], frozen=teacher == "frozen").detach() if variant == "model" else at.target
    with _begin_mark_fixed(context.model.unet):
        own.holds((own.predict(at, [shown[k] for k in which]) - wanted).square().mean())


def test_fmn(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of all attention to the concept's tokens, as the layers' own scores have it."""
    own = caught(monkeypatch, context, "fmn", padding=False)
    examples, model = context.examples(FISH, FEW["pictures"], True), context.model
    at, which = own.batch(examples.latents)
    prompts = [examples.prompts[k] for k in which]
    fish = model.tokenizer("fish", add_special_tokens=False).input_ids
    assert len(fish) == 1
    places = model.tokenize(prompts) == fish[0]
    squares: list[Tensor] = []

    def hook(module: Any, inputs: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        query, key = module.to_q(inputs[0]), module.to_k(kwargs["encoder_hidden_states"])
        scores = module.get_attention_scores(module.head_to_batch_dim(query), module.head_to_batch_dim(key))
        squares.append((scores.unflatten(0, (len(prompts), -1)) * places[:, None, None]).square().sum())

    layers = [module for name, module in model.unet.named_modules() if name.endswith("attn2")]
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    own.predict(at, prompts)
    for handle in handles:
        handle.remove()
    assert len(squares) == len(layers)
    own.holds(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize(("name", "module", "wanted"), [("esd", methods.esd, 3 - 2 * (3 - 1)), ("spm", methods.spm, 1 - 2 * (3 - 1))])
def test_what_trajectories_are_trained_towards(
    name: str, module: Any, wanted: float, context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ESD: away from the text's prediction; SPM: past the empty text's. By hand: ε_∅ = 1, ε_c = 3, a guidance of 2."""
    seen: list[Tensor] = []

    def walk(context: FitContext, text: str, target: Callable[[Tensor, Tensor], Tensor], *args: Any) -> None:
        seen.append(target(torch.tensor(1.0), torch.tensor(3.0)))
        raise CaughtError

    monkeypatch.setattr(module, "walk", walk)
    kind = method(name)
    with pytest.raises(CaughtError):
        kind(kind.Config(negative_guidance=2.0)).fit(context, [FISH])
    assert seen == [torch.tensor(float(wanted))]


def test_spm_holds_its_anchors(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is the erasing one and λ times what the adapters change of random texts."""
    passes: list[tuple[tuple[Tensor, ...], Tensor]] = []
    losses: list[Tensor] = []
    predict = methods.spm.predict

    def recorded(context: FitContext, unet: Any, *inputs: Tensor) -> Tensor:
        found = predict(context, unet, *inputs)
        passes.append((inputs, found.detach()))
        return found

    def descend(context: FitContext, optimiser: torch.optim.Optimizer, iterations: int, loss: Callable[[], Tensor], schedule: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for factor in optimiser.param_groups[0]["params"]:
                factor.add_(0.1 * torch.randn(factor.shape, generator=generator))
        losses.append(loss().detach())
        raise CaughtError

    monkeypatch.setattr(methods.spm, "predict", recorded)
    monkeypatch.setattr(methods.spm, "descend", descend)
    kind = method("spm")
    for weight in (0.0, 5.0):
        config = kind.Config(anchor_strength=weight, batch=2, anchors=3, trajectories=1, denoising_steps=3, iterations=1)
        with pytest.raises(CaughtError):
            kind(config).fit(context, [FISH])
    inputs, found = passes[-1]
    assert len(found) == 2 + 2 * 3
    frozen = predict(context, context.model.unet, *(part[2:] for part in inputs))
    error = (found[2:] - frozen).square().mean()
    assert error > 1e-4
    torch.testing.assert_close(losses[1] - losses[0], 5.0 * error, rtol=1e-3, atol=1e-7)


def test_shs_draws_the_weights_of_highest_score_anew(context: FitContext) -> None:
    """Of `|Σ |g| · θ|` over cross-attention, g the gradients of the diffusion loss on pictures of the concept."""
    config = SHSConfig(pictures=4, batch=2, iterations=0, sparsity=0.9, score_batches=2)
    values = SHS(config).fit(context, [FISH]).weights.values
    student = Student(context, parameter_names(context.model.unet, "all"))
    task = Forgetting.begin(config, context, [FISH], student)
    names = parameter_names(context.model.unet, "x")
    sums = dict.fromkeys(names, torch.zeros(()))
    for _ in range(2):
        at, texts, _ = task.to_forget()
        gradient = dict(zip(student.weights, student.gradient((student.predict(at, texts) - at.target).square().mean()), strict=True))
        sums = {name: sums[name] + gradient[name].abs() for name in names}
    scores = torch.cat([(sums[name] * student.weights[name].detach()).abs().flatten() for name in names])
    moved = torch.cat([(values[f"unet.{name}"] != student.weights[name]).flatten() for name in names])
    edge = scores.topk(round(0.1 * len(scores))).values[-1]
    assert not (moved & (scores < edge * (1 - 1e-4))).any()
    assert moved.sum() > 0.9 * (scores >= edge).sum()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (SalUnConfig, {"mask": "least-salient", "mask_density": 0.4, "mask_guidance": 0.0, "mask_applied": False, "iterations": 30}),
        (EDiffConfig, {"weight": "fixed", "iterations": 75}),
        (SHSConfig, {"iterations": 30}),
    ],
)
def test_published_code_is_what_is_named_and_nothing_else(config: Any, named: dict[str, Any]) -> None:
    ours, theirs = config().model_dump(), config(preset="published-code").model_dump()
    assert {key: value for key, value in theirs.items() if value != ours[key]} == {
        "preset": "published-code", "data": "first-four", **named,
    }  # fmt: skip

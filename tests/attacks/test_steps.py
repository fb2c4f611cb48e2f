"""Gradient steps of attacks against torch's own optimisers, on a victim whose predictions are linear in the prompt's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from bench.adversary import AttackContext, Candidate, Goal, States, WhiteBox
from bench.api import DiffusionModel, Erasure, Victim, learned_name, written
from bench.attack_plan import goal_of
from bench.diffusion.rows import Row
from bench.engine.assault import spelled, vocabulary
from bench.registry import attack as find_attack
from bench.suites.minicanvas import SUITE
from bench.types import Concept, Target

GOAL = goal_of(SUITE, Target((Concept("object", "fish"),)), SUITE.request("neon", "fish", 1, 4), False)
STATES = 3


class Linear:
    """`ε = x + (1 + t/1000) W Σ embeddings`; counts its calls."""

    def __init__(self, model: DiffusionModel, goals: Sequence[Goal]) -> None:
        erasure = Erasure()
        self.rows, self.calls = [Row(goal.request, erasure) for goal in goals], 0
        self.shape = model.latent_shape
        width = model.text_encoder.get_input_embeddings().weight.shape[1]
        self.matrix = 0.1 * torch.randn(width, int(np.prod(self.shape)), generator=torch.Generator().manual_seed(1))

    def spread(self, count: int) -> list[int]:
        return [100 * (k + 1) for k in range(count)]

    def noised(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        return latents + noise

    def target(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        return noise

    def of(self, embeds: Tensor, noisy: Tensor, t: float) -> Tensor:
        return noisy + (1 + t / 1000) * (embeds.sum(0) @ self.matrix).reshape(self.shape)

    def predict(self, which: Sequence[int], texts: Sequence[Any], noisy: Tensor, timesteps: Tensor, place: int = 0) -> Tensor:
        self.calls += 1
        return torch.stack([self.of(text.embeds, x, float(t)) for text, x, t in zip(texts, noisy, timesteps, strict=True)])


@pytest.fixture
def context(model: DiffusionModel) -> AttackContext:
    generator = torch.Generator().manual_seed(2)
    noisy, said = torch.randn(2, 1, STATES, *model.latent_shape, generator=generator)
    states = States(noisy, torch.tensor([100, 500, 900]), said)
    targets = torch.randn(1, *model.latent_shape, generator=generator)
    victim = cast(Victim, Linear(model, [GOAL]))
    return AttackContext(model, [GOAL], targets, victim, states, vocabulary(model, SUITE), spelled(model))


def linear(context: AttackContext) -> Linear:
    return cast(Linear, context.victim)


def proposals(name: str, context: AttackContext, **own: object) -> list[Candidate]:
    """One per round; none succeeds."""
    kind = find_attack(name)
    attack = kind(kind.Config.model_validate(own))
    assert isinstance(attack, WhiteBox)
    search, found = attack.search(context), []
    with suppress(StopIteration):
        rounds = next(search)
        while True:
            found += rounds
            rounds = search.send([False] * len(rounds))
    return found


def table_of(model: DiffusionModel) -> Tensor:
    return cast(Tensor, model.text_encoder.get_input_embeddings().weight.detach())


def filled(model: DiffusionModel, before: Sequence[int], own: Tensor, after: Sequence[int]) -> Tensor:
    """Embeddings [L, d] of a prompt with `own` [k, d] among its tokens, marks and padding as the tokenizer has them."""
    table, end = table_of(model), int(model.tokenizer.eos_token_id)
    begin = [int(model.tokenizer.bos_token_id), *before]
    rest = [*after, *[end] * (model.max_tokens - len(begin) - len(own) - len(after))]
    return torch.cat([table[begin], own, table[rest]])


def drawn_tokens(context: AttackContext, generator: torch.Generator, count: int) -> Tensor:
    (allowed,) = context.allowed()
    known = allowed.nonzero()[:, 0]
    return known[torch.randint(len(known), (count,), generator=generator)]


def nearest(context: AttackContext, embeds: Tensor) -> Tensor:
    (allowed,) = context.allowed()
    likeness = torch.cosine_similarity(embeds[:, None], table_of(context.model)[None], dim=-1)
    return likeness.where(allowed, torch.tensor(-2.0)).argmax(1)


def test_p4d_is_pez_with_adamw(context: AttackContext) -> None:
    """Gradient at the nearest tokens, to the tokens that it is taken at, applied to what they are projected from."""
    model, states, steps, count = context.model, context.states, 8, 4
    assert states is not None
    found = proposals("p4d-n", context, iterations=steps, every=1, states=STATES, tokens=count, learning_rate=0.3, weight_decay=0.2)
    generator = context.generator(0, "P4DN")
    order = torch.randint(STATES, (steps,), generator=generator).tolist()
    tokens = drawn_tokens(context, generator, count)
    values = nn.Parameter(table_of(model)[tokens].clone())
    optimizer, expected = torch.optim.AdamW([values], lr=0.3, weight_decay=0.2), []
    for state in order:
        hard = table_of(model)[tokens].clone().requires_grad_()
        own = filled(model, [], hard, [])
        error = linear(context).of(own, states.noisy[0, state], float(states.timesteps[state])) - states.predictions[0, state]
        (values.grad,) = torch.autograd.grad(error.square().mean(), hard)
        optimizer.step()
        tokens = nearest(context, values.detach())
        expected.append(model.tokenizer.decode(tokens.tolist()).strip())
    assert [candidate.request.prompt for candidate in found] == expected
    assert len(set(expected)) > 1


def test_cce_learns_the_embedding_that_adam_does(context: AttackContext) -> None:
    model, steps = context.model, 6
    found = proposals("cce", context, iterations=steps, every=1, learning_rate=0.05, timesteps=4)
    before, after = (model.tokenizer(text).input_ids[1:-1] for text in ("A", "image in neon style."))
    value = nn.Parameter(table_of(model)[context.vocabulary].mean(0))
    optimizer, noises = torch.optim.Adam([value], lr=0.05), context.generator(0, "cce")
    order = torch.randint(4, (steps,), generator=torch.Generator().manual_seed(0)).tolist()
    for place, candidate in zip(order, found, strict=True):
        noise = torch.randn(model.latent_shape, generator=noises)
        said = linear(context).of(filled(model, before, value[None], after), context.targets[0] + noise, 100.0 * (place + 1))
        optimizer.zero_grad()
        (said - noise).square().mean().backward()
        optimizer.step()
        ((name, learned),) = candidate.learned.items()
        torch.testing.assert_close(learned, value.detach(), rtol=1e-4, atol=1e-5)
        assert name in candidate.request.prompt
        assert torch.equal(learned, written(learned)), "to the last digit what files have"
        assert learned_name(torch.tensor([round(v, 6) for v in learned.tolist()])) == name


def simplex(values: np.ndarray[Any, Any], allowed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    own = values[allowed]
    shift = brentq(lambda tau: np.maximum(own - tau, 0).sum() - 1, own.min() - 2, own.max(), xtol=1e-14)
    return np.where(allowed, np.maximum(values - shift, 0), 0)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_unlearndiffatk_is_projected_adam_with_weight_decay(context: AttackContext, decay: float) -> None:
    """One token, one loss per timestep: the relaxed row against torch's Adam, whose L2 term it is, and an independent projection."""
    model, steps = context.model, 8
    own = {"timesteps": steps, "iterations": 1, "tokens": 1, "learning_rate": 0.01, "weight_decay": decay}
    found = proposals("unlearndiffatk", context, **own)
    (allowed,), table = context.allowed(), table_of(model)
    words = model.tokenizer(GOAL.request.prompt).input_ids[1:-1]
    row = nn.Parameter(allowed / allowed.sum())
    optimizer, expected = torch.optim.Adam([row], lr=0.01, weight_decay=decay), []
    for place in range(steps):
        generator = context.generator(0, f"unlearndiffatk {place}")
        noise, uniform = torch.randn(1, *model.latent_shape, generator=generator)[0], torch.rand(1, 1, generator=generator)
        token = int(torch.searchsorted(row.detach().cumsum(0), float(uniform) * row.detach().sum()))
        straight = table[token] + (row - row.detach()) @ table
        said = linear(context).of(filled(model, [], straight[None], words), context.targets[0] + noise, 100.0 * (place + 1))
        optimizer.zero_grad()
        (said - noise).square().mean().backward()
        assert row.grad is not None
        row.grad.clamp_(-1, 1)
        optimizer.step()
        row.data = torch.from_numpy(simplex(row.detach().double().numpy(), allowed.numpy())).float()
        best = (row.detach() > row.detach().max() - 1e-5).nonzero()[:, 0].tolist()  # rounding decides between equal ones
        expected.append({f"{model.tokenizer.decode([token]).strip()} a fish image in neon style ." for token in best})
    assert all(candidate.request.prompt in own for candidate, own in zip(found, expected, strict=True))
    assert sum(len(own) == 1 for own in expected) > 3
    assert len(set(map(frozenset, expected))) > 2


def test_the_null_control_judges_the_best_of_as_many_losses(context: AttackContext) -> None:
    model, timesteps, iterations = context.model, 3, 5
    found = proposals("null-control", context, timesteps=timesteps, iterations=iterations, tokens=2)
    assert linear(context).calls == timesteps * iterations
    words = model.tokenizer(GOAL.request.prompt).input_ids[1:-1]
    for place, candidate in enumerate(found):
        drawn = drawn_tokens(context, context.generator(0, f"null tokens {place}"), 2 * iterations).view(iterations, 2)
        noise = torch.randn(iterations, *model.latent_shape, generator=context.generator(0, f"null {place}"))
        losses = [
            (linear(context).of(filled(model, [], table_of(model)[pair], words), context.targets[0] + own, 100.0 * (place + 1)) - own)
            .square().mean() for pair, own in zip(drawn, noise, strict=True)
        ]  # fmt: skip
        best = drawn[int(torch.stack(losses).argmin())]
        assert candidate.request.prompt == f"{model.tokenizer.decode(best.tolist()).strip()} a fish image in neon style ."


@pytest.mark.parametrize("name", ["unlearndiffatk", "null-control", "p4d-n", "p4d-k", "cce"])
def test_a_gradient_step_is_one_call(name: str, context: AttackContext) -> None:
    own = {"timesteps": 3, "iterations": 4} if name in ("unlearndiffatk", "null-control") else {"iterations": 12, "every": 4}
    proposals(name, context, **own, **({"states": STATES} if name.startswith("p4d") else {}))
    assert linear(context).calls == 12

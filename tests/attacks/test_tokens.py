"""Projections, places and exchanges of tokens, against hand-worked cases and independent solutions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq

from bench.adversary import AttackContext, Goal
from bench.api import BenchError, DiffusionModel, Erasure, Row, Victim
from bench.attacks.mma import exchanges
from bench.attacks.tokens import Slots, free_slots, nearest_tokens, to_simplex, words_of
from bench.engine.assault import spelled
from bench.suites.minicanvas import SUITE

VALUES = arrays(np.float64, st.integers(2, 12), elements=st.floats(-5, 5))


@settings(max_examples=150, deadline=None)
@given(values=VALUES, data=st.data())
def test_the_simplex_is_projected_onto(values: np.ndarray, data: st.DataObject) -> None:
    """Against the root of Σ max(v − τ, 0) = 1 that scipy finds over the allowed entries."""
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)).filter(any)))
    found = to_simplex(torch.from_numpy(values), torch.from_numpy(allowed)).numpy()
    own = values[allowed]
    shift = brentq(lambda tau: np.maximum(own - tau, 0).sum() - 1, own.min() - 2, own.max())
    expected = np.where(allowed, np.maximum(values - shift, 0), 0)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.sum() == pytest.approx(1)


def test_timesteps_are_the_published_ones(model: DiffusionModel) -> None:
    assert Victim(model, [Row(SUITE.request("neon", "fish", 1, 4), Erasure())], torch.float32).spread(50) == list(range(10, 1000, 20))


def test_the_nearest_token_is_by_angle() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, 10.0]])
    embeds = torch.tensor([[0.2, 0.01], [0.0, 7.0], [3.0, 2.9]])
    assert nearest_tokens(embeds, table, torch.tensor([True, True, True])).tolist() == [0, 1, 2]
    assert nearest_tokens(embeds, table, torch.tensor([True, True, False])).tolist() == [0, 1, 0]


def test_exchanges_follow_the_gradient() -> None:
    """Two places, four tokens, of which one is not allowed: only the best one of each place may come in, one place at a time."""
    gradient = torch.tensor([[0.0, -3.0, -9.0, 1.0], [5.0, 0.0, -9.0, -1.0]])
    allowed = torch.tensor([True, True, False, True])
    found = exchanges(gradient, allowed, torch.tensor([0, 0]), 1, 4, torch.Generator().manual_seed(0))
    assert found.tolist() == [[1, 0], [1, 0], [0, 3], [0, 3]]


def context(model: DiffusionModel, forbidden: tuple[str, ...] = ("fish",)) -> AttackContext:
    request = SUITE.request("neon", "fish", 1, 4)
    goal = Goal(request, request, ("fish",), forbidden)
    return AttackContext(model, [goal], torch.zeros(1, *model.latent_shape), vocabulary=torch.ones(545, dtype=torch.bool))


def test_free_tokens_stand_where_they_should(model: DiffusionModel) -> None:
    ctx = context(model)
    new = torch.tensor([[words_of(model, "tree")[0], words_of(model, "cup")[0]]])
    for location, expected in (
        ("prefix", "tree cup a fish image in neon style ."),
        ("suffix", "a fish image in neon style . tree cup"),
        ("insertion", "a fish image tree cup in neon style ."),
        ("replacement", "tree cup"),
    ):
        slots = free_slots(ctx, 2, location)
        assert slots.text(0, new[0]) == expected
        ids = slots.filled(torch.tensor([0]), new)[0]
        assert ids.tolist() == model.tokenize([expected])[0].tolist(), "marks and padding too"
    (text,) = slots.soft(torch.tensor([0]), new, slots.table[new])
    torch.testing.assert_close(text.embeds, slots.table[text.ids])


def test_goals_may_have_different_numbers_of_free_tokens(model: DiffusionModel) -> None:
    prompt, tree, cup = "A fish image in neon style.", words_of(model, "tree")[0], words_of(model, "cup")[0]
    ctx = context(model)
    two = replace(ctx, goals=ctx.goals * 2)
    slots = Slots(two, [prompt, prompt], [[0, 2], [1]])
    new = torch.tensor([[tree, cup], [tree, cup]])
    assert [slots.text(g, new[g]) for g in range(2)] == ["tree a fish cup image in neon style .", "a tree fish image in neon style ."]
    first, second = slots.soft(torch.tensor([0, 1]), new, slots.table[new])
    for text, expected in ((first, "tree a fish cup image in neon style ."), (second, "a tree fish image in neon style .")):
        assert text.ids.tolist() == model.tokenize([expected])[0].tolist()
        torch.testing.assert_close(text.embeds, slots.table[text.ids])
    found = slots.candidate(1, torch.tensor([tree, words_of(model, "fish")[0]]), 1)
    assert found is not None, "what is left over spells nothing"


def test_tokens_that_spell_a_forbidden_word_are_never_drawn(model: DiffusionModel) -> None:
    ctx = context(model, ("fish", "trout", "animal from the sea"))
    ctx = replace(ctx, spelled=spelled(model))
    (allowed,) = ctx.allowed()
    out = {model.tokenizer.decode([k]).strip() for k in (~allowed).nonzero()[:, 0].tolist()}
    assert {"fish", "trout"} <= out
    assert not {"animal", "sea", "tree"} & out, "a phrase is refused as a whole, when it is spelled"
    assert ctx.candidate(0, "x", "the Animal from the sea now") is None
    assert ctx.candidate(0, "x", "animal of the sea") is not None
    assert ctx.candidate(0, "x", "a fi sh now") is None, "joined, too"


def test_too_many_tokens_and_forbidden_words(model: DiffusionModel) -> None:
    ctx = context(model)
    with pytest.raises(BenchError, match=r"has 7 tokens and the attack adds 20; the text encoder takes 22: give the attack fewer"):
        Slots(ctx, ["A fish image in neon style."], [[0] * 20])
    slots = Slots(ctx, ["A fish image in neon style."], [[0]])
    assert slots.candidate(0, torch.tensor(words_of(model, "fish")), 3) is None
    found = slots.candidate(0, torch.tensor(words_of(model, "tree")), 3)
    assert found is not None
    assert (found.goal, found.gradient_steps, found.request.seed) == (0, 3, 1)
    assert found.request.noise_key == ctx.goals[0].request.noise_key, "attacked pictures keep their noise"

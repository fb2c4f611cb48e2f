"""The closed forms of UCE, RECE and MACE's refinement: limits, optima, and what they do to the model's own texts."""

from __future__ import annotations

import pytest
import torch
from test_methods import FISH, NEON, fit, pictures
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.errors import BenchError
from bench.interfaces import FitContext
from bench.types import Concept, ConceptTexts
from methods.common.closed_form import cross_attention_weights, gram, revive, solve
from methods.common.texts import name_pair, positions_of
from methods.mace_cfr import FRAMES


def heard(model: DiffusionModel, difference: Tensor) -> float:
    """What all keys and values see of rows [n, D]."""
    return sum(float((difference @ weight.T).square().sum()) for _, weight in cross_attention_weights(model))


def test_the_reviving_embedding_of_unedited_weights_is_the_concept(model: DiffusionModel) -> None:
    states = model.text_states(["neon"])[0]
    torch.testing.assert_close(revive(states, torch.eye(128), gram(model), 1e-9), states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regulariser", [1e-3, 10.0])
def test_the_reviving_embedding_is_the_least_of_its_formula(regulariser: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 7, 12, generator=generator, dtype=torch.float64)
    matrix, c = torch.randn(12, 12, generator=generator, dtype=torch.float64), torch.randn(1, 12, generator=generator, dtype=torch.float64)

    def cost(own: Tensor) -> Tensor:
        return sum((own @ (w @ matrix).T - c @ w.T).square().sum() for w in weights) + regulariser * own.square().sum()

    found = revive(c, matrix, sum(w.T @ w for w in weights), regulariser).requires_grad_()
    cost(found).backward()
    assert float(found.grad.norm()) < 1e-8
    assert cost(found) < cost(c)


def test_rece_without_epochs_is_uce(context: FitContext) -> None:
    own = fit("rece", context, [NEON], epochs=0).text.matrix
    assert torch.equal(own, fit("uce", context, [NEON], erase_scale=1.0, preserve_scale=0.1, regulariser=0.1).text.matrix)


@pytest.mark.parametrize("concepts", [[NEON], [NEON, FISH]])
def test_rece_erases_what_revives_the_concept_after_uce(concepts: list[Concept], model: DiffusionModel, context: FitContext) -> None:
    uce, rece = (fit("rece", context, concepts, epochs=epochs).text.matrix for epochs in (0, 1))
    states = model.text_states(["neon"])[0]
    revived = revive(states, uce, gram(model), 1e-3)
    assert heard(model, revived @ uce.T - states) < 0.5 * heard(model, states @ uce.T - states), "UCE's weights still hear the concept"
    assert heard(model, revived @ rece.T - states) > 2 * heard(model, revived @ uce.T - states)


def test_rece_leads_to_its_guide(model: DiffusionModel, context: FitContext) -> None:
    uce = fit("rece", context, [NEON], epochs=0, erase_scale=1e4).text.matrix
    revived = revive(model.text_states(["neon"])[0], uce, gram(model), 1e-3)
    for guide, text in (("empty", ""), ("anchor", "photo")):
        matrix = fit("rece", context, [NEON], guide=guide, erase_scale=1e4).text.matrix
        led, wanted = revived @ matrix.T, model.text_states([text])[0] @ uce.T
        assert (led - wanted).norm() < 0.1 * (revived @ uce.T - wanted).norm(), guide


def test_mace_cfr_moves_the_words_beside_the_concept_more_than_its_own(model: DiffusionModel, context: FitContext) -> None:
    matrix = fit("mace-cfr", context, [NEON], regulariser=1.0).text.matrix
    old, new = model.text_states(["An image in neon style", "An image in photo style"])
    assert positions_of(model, "neon", "An image in neon style") == [4]
    own, beside = (float((old @ matrix.T - new)[place].norm() / (old - new)[place].norm()) for place in (4, slice(5, None)))
    assert beside < 0.3
    assert own > 2 * beside


@pytest.mark.parametrize("concept", [NEON, FISH])
def test_mace_cfr_is_solved_from_all_positions_but_the_concepts(concept: Concept, model: DiffusionModel, context: FitContext) -> None:
    sides: list[Tensor] = []
    for side in (0, 1):
        texts = [frame.format(pair[side]) for pair in context.texts(concept).pairs for frame in FRAMES]
        (token,) = {int(model.tokenize([name_pair(context.texts(concept))[side]])[0, 1])}
        sides.append(model.text_states(texts)[model.tokenize(texts) != token])
    kept = model.text_states(["", *sorted(context.texts(concept).retain)]).flatten(0, 1)
    expected = solve(*sides, kept, 1.0, 0.5, 7.0)
    torch.testing.assert_close(fit("mace-cfr", context, [concept], preserve_scale=0.5, regulariser=7.0).text.matrix, expected)


def test_mace_cfr_holds_retained_texts(model: DiffusionModel, context: FitContext) -> None:
    kept = model.text_states(list(context.texts(NEON).retain[:5])).flatten(0, 1)
    free, held = (fit("mace-cfr", context, [NEON, FISH], preserve_scale=scale).text.matrix for scale in (0.0, 100.0))
    assert (kept @ held.T - kept).norm() < 0.2 * (kept @ free.T - kept).norm()


@pytest.mark.parametrize("name", ["rece", "mace-cfr"])
def test_as_text_and_as_weights_give_the_same_pictures(name: str, model: DiffusionModel, context: FitContext) -> None:
    as_text, as_weights = fit(name, context, [NEON]), fit(name, context, [NEON], apply="weights")
    assert as_text.weights is None
    assert as_weights.text is None
    torch.testing.assert_close(pictures(model, as_weights), pictures(model, as_text), rtol=1e-2, atol=1e-2)


def test_a_phrase_without_the_concepts_name_is_a_sentence(model: DiffusionModel) -> None:
    texts = ConceptTexts("neon", "photo", (("neon", "photo"), ("a glowing tube", "a camera")), ("a fish",))
    with pytest.raises(BenchError, match="does not hold its concept's name"):
        fit("mace-cfr", FitContext(model, lambda concept: texts, seed=0, steps=4, guidance_scale=4.0), [NEON])


def test_names_are_the_shortest_phrases_and_tokens_are_found_in_every_place(model: DiffusionModel, context: FitContext) -> None:
    assert name_pair(context.texts(FISH)) == ("fish", "nothing")
    assert positions_of(model, "fish", "A fish, a star and a fish.") == [2, 8]
    assert positions_of(model, "FISH", "A Fish image.") == [2]
    assert positions_of(model, "fish", "A star.") == []
    assert positions_of(model, "", "A star.") == []
    assert positions_of(model, "glowing tube", "A glowing tube.") == list(range(2, 2 + len(model.tokenizer.tokenize("glowing tube"))))

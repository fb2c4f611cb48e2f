"""Methods that edit text states: SAFREE, SEOT and Concept Steerers against their formulas, and all of them on SDXL."""

from __future__ import annotations

import re
from dataclasses import replace
from math import exp
from pathlib import Path

import miniature_sdxl
import pytest
import torch
from conftest import SLOTS, request_of
from test_methods import FISH, NEON, fit
from torch import Tensor

from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.diffusion.text import PlainText
from bench.erasure import load_erasure, pack
from bench.errors import BenchError
from bench.interfaces import Cond, FitContext
from bench.registry import method
from bench.suites.minicanvas import SUITE
from bench.types import Concept
from methods import safree, seot, steerers

PROMPT = "A fish image in neon style."
NAMES = ("rece", "mace-cfr", "safree", "seot", "steerers")


def plain(model: DiffusionModel, text: str, steps: int = 10) -> Cond:
    (found,) = PlainText().encode(model, [text], "conditional", steps)
    return found


def same(a: Cond, b: Cond) -> bool:
    return torch.equal(a.embeds, b.embeds) and torch.equal(a.variant_at, b.variant_at)


@pytest.mark.parametrize("name", NAMES)
def test_cards_can_be_cited(name: str) -> None:
    card = method(name).card
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", card.paper)
    entry = re.fullmatch(r"@\w+\{\w+,\n((?:  \w+ = \{.*\},\n)+)\}", card.bibtex)
    assert entry is not None
    assert {"title", "author", "year"} <= {line.split()[0] for line in entry[1].splitlines()}
    assert card.bibtex.count("{") == card.bibtex.count("}")
    assert card.notes


# SAFREE


def projected(*pooled: Tensor) -> safree.ProjectedText:
    rows = torch.stack(pooled) if pooled else torch.zeros(0, 128)
    return safree.ProjectedText(rows, alpha=0.01, up_to=10, curve="general")


def test_safree_without_a_concept_or_a_word_leaves_texts_alone(model: DiffusionModel, context: FitContext) -> None:
    edit = projected()
    assert same(edit.encode(model, [PROMPT], "conditional", 10)[0], plain(model, PROMPT))
    real = fit("safree", context, [NEON]).text
    assert same(real.encode(model, [""], "conditional", 10)[0], plain(model, ""))
    assert same(real.encode(model, [""], "unconditional", 10)[0], plain(model, ""))
    assert same(real.encode(model, [PROMPT], "extra", 10)[0], plain(model, PROMPT))


@pytest.mark.parametrize("concepts", [[NEON], [FISH], [NEON, FISH]])
def test_safree_projects_triggers_as_its_formula_does(concepts: list[Concept], model: DiffusionModel, context: FitContext) -> None:
    edit = fit("safree", context, concepts).text
    (found,) = edit.encode(model, [PROMPT], "conditional", 10)
    before, after = found.embeds
    assert torch.equal(before, plain(model, PROMPT).embeds[0])
    tokens = model.tokenize([PROMPT]).repeat(7, 1)
    for k in range(7):
        tokens[k, k + 1] = 0
    masked = model.text_encoder(tokens).pooler_output.double().T
    concept = edit.concepts.double().T
    outside = torch.eye(128, dtype=torch.float64) - concept @ torch.linalg.inv(concept.T @ concept) @ concept.T
    length = (outside @ masked).norm(dim=0)
    triggers = [k for k in range(7) if length[k] >= 1.01 * (length.sum() - length[k]) / 6]
    rows = (before != after).any(1).nonzero()[:, 0].tolist()
    assert rows == [k + 1 for k in triggers]
    assert 0 < len(rows) < 7
    basis = torch.linalg.qr(masked).Q
    torch.testing.assert_close(after[rows].double(), (outside @ basis @ basis.T @ before[rows].double().T).T, rtol=1e-3, atol=1e-3)
    assert (after[rows].double() @ concept).abs().max() < 1e-3 * concept.norm()


def test_safree_finds_the_tokens_without_which_a_text_is_farther() -> None:
    lengths = torch.tensor([1.0, 1.0, 1.3, 1.1], dtype=torch.float64)
    rows = torch.diag(lengths)
    assert safree.find_triggers(rows, 0.01).tolist() == [2]
    assert safree.find_triggers(rows, 0.2).tolist() == [2], "1.3 is more than 1.2 times the mean of the others, 1.033"
    assert safree.find_triggers(rows, 0.3).tolist() == []
    assert safree.find_triggers(rows[:1], 0.01).tolist() == [0], "the only token"


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 0), (0.5333, 5), (0.55, 7), (1.0, 10)])
def test_safree_filters_steps_by_how_much_a_projection_changes(beta: float, expected: int) -> None:
    assert safree.last_step(beta, 10, *safree.CURVES["general"]) == expected
    assert expected == round(10 / (1 + exp(-5.0 * (10 * beta - 5.333))))


def test_safree_switches_where_its_filter_says(model: DiffusionModel, context: FitContext) -> None:
    edit = fit("safree", context, [NEON]).text
    assert edit.curve == "artist"
    (found,) = edit.encode(model, [PROMPT], "conditional", 20)
    assert found.variant_at.tolist() == [1] * 11 + [0] * 9, "the projection turns this text far away: steps 0 to 10"
    always = replace(edit, curve="").encode(model, [PROMPT], "conditional", 20)[0]
    assert always.variant_at.tolist() == [1] * 20
    assert fit("safree", context, [FISH]).text.curve == "general"
    assert fit("safree", context, [NEON, FISH]).text.curve == "general"
    assert fit("safree", context, [NEON], filter="published-code").text.curve == "general"
    assert fit("safree", context, [NEON], filter="none").text.curve == ""
    early = replace(edit, up_to=3).encode(model, [PROMPT], "conditional", 20)[0]
    assert early.variant_at.tolist() == [1] * 4 + [0] * 16


# SEOT


def suppressed(context: FitContext, concepts: list[Concept], **settings: object) -> seot.SuppressedText:
    edit = fit("seot", context, concepts, **settings).text
    assert isinstance(edit, seot.SuppressedText)
    return edit


def changed_rows(cond: Cond) -> list[int]:
    return (cond.embeds[0] != cond.embeds[-1]).any(1).nonzero()[:, 0].tolist()


def test_seot_leaves_prompts_without_the_concept_alone(model: DiffusionModel, context: FitContext) -> None:
    for trigger in ("prompt", "published-oracle"):
        edit = suppressed(context, [NEON], trigger=trigger)
        for text in ("A fish image in mosaic style.", ""):
            assert same(edit.encode(model, [text], "conditional", 10)[0], plain(model, text))
        assert same(edit.encode(model, [PROMPT], "unconditional", 10)[0], plain(model, PROMPT))


@pytest.mark.parametrize(
    ("concepts", "trigger", "places"),
    [
        ([NEON], "prompt", [5]), ([FISH], "prompt", [2]), ([NEON, FISH], "prompt", [2, 5]),
        ([NEON], "published-oracle", [5, 6]), ([FISH], "published-oracle", [2]), ([NEON, FISH], "published-oracle", [2, 5, 6]),
    ],
)  # fmt: skip
def test_seot_edits_the_concepts_tokens_and_the_end(
    concepts: list[Concept], trigger: str, places: list[int], model: DiffusionModel, context: FitContext
) -> None:
    (found,) = suppressed(context, concepts, trigger=trigger).encode(model, [PROMPT], "conditional", 10)
    assert changed_rows(found) == [*places, *range(8, 24)]


@pytest.mark.parametrize(("concepts", "first"), [([NEON], 5), ([FISH], 2), ([NEON, FISH], 2)])
def test_seot_can_weaken_the_words_behind_a_name_too(
    concepts: list[Concept], first: int, model: DiffusionModel, context: FitContext
) -> None:
    (found,) = suppressed(context, concepts, words="from-name").encode(model, [PROMPT], "conditional", 10)
    assert changed_rows(found) == list(range(first, 24))


def test_seot_goes_by_the_prompt_and_not_by_the_template(model: DiffusionModel, context: FitContext) -> None:
    text = "This is fish made in neon style"
    (found,) = suppressed(context, [FISH]).encode(model, [text], "conditional", 10)
    place = model.tokenize([text])[0].tolist().index(model.tokenize(["fish"])[0, 1])
    assert changed_rows(found)[0] == place != 2
    (fixed,) = suppressed(context, [FISH], trigger="published-oracle").encode(model, [text], "conditional", 10)
    assert changed_rows(fixed)[0] == 2


def test_seot_weakens_singular_values(model: DiffusionModel, context: FitContext) -> None:
    (found,) = suppressed(context, [NEON], alpha=0.1).encode(model, [PROMPT], "conditional", 10)
    rows = changed_rows(found)
    before, after = (torch.linalg.svdvals(own[rows].double()) for own in found.embeds)
    torch.testing.assert_close(after, (before * torch.exp(-0.1 * before)).sort(descending=True).values, rtol=1e-4, atol=1e-5)
    (idle,) = suppressed(context, [NEON], alpha=0.0).encode(model, [PROMPT], "conditional", 10)
    torch.testing.assert_close(idle.embeds[1], idle.embeds[0])


@pytest.mark.parametrize(("start", "steps", "first"), [(0.2, 50, 10), (0.2, 4, 1), (0.0, 4, 0), (1.0, 4, 4)])
def test_seot_starts_late(start: float, steps: int, first: int, model: DiffusionModel, context: FitContext) -> None:
    (found,) = suppressed(context, [NEON], start=start).encode(model, [PROMPT], "conditional", steps)
    assert found.variant_at.tolist() == [0] * first + [1] * (steps - first)


# Concept Steerers


@pytest.mark.parametrize("depth", [0.0, 0.75])
def test_steerers_add_a_multiple_of_the_vector_behind_a_layer(depth: float, model: DiffusionModel, context: FitContext) -> None:
    edit = fit("steerers", context, [NEON], depth=depth).text
    layer = steerers.layers_of(model)[edit.layer]
    assert edit.layer == (0 if depth == 0 else 1)
    for role, sign in (("conditional", -0.5), ("unconditional", 0.5)):
        handle = layer.register_forward_hook(lambda module, inputs, output, sign=sign: output + sign * edit.vector)
        expected = model.text_encoder(model.tokenize([PROMPT])).last_hidden_state[0]
        handle.remove()
        (found,) = edit.encode(model, [PROMPT], role, 4)
        torch.testing.assert_close(found.embeds[0], expected)
        assert not torch.allclose(found.embeds[0], plain(model, PROMPT).embeds[0], atol=1e-2)
    assert same(edit.encode(model, [PROMPT], "extra", 10)[0], plain(model, PROMPT))
    one = replace(edit, slots="conditional")
    assert same(one.encode(model, [""], "unconditional", 10)[0], plain(model, ""))
    torch.testing.assert_close(replace(edit, strength=0.0).encode(model, [PROMPT], "conditional", 4)[0].embeds, plain(model, PROMPT).embeds)


def test_steering_vectors_are_decoded_from_the_concepts_latents(model: DiffusionModel, context: FitContext, tmp_path: Path) -> None:
    own = replace(context, cache=tmp_path, concepts=SUITE.concepts)
    wanted = (([NEON], "dense"), ([NEON], "topk"), ([NEON, FISH], "dense"))
    dense, topk, both = (fit("steerers", own, concepts, latents=latents) for concepts, latents in wanted)
    (folder,) = {path.parent for path in tmp_path.rglob("sae.safetensors")}
    sae = steerers.load_sae(folder, torch.device("cpu"))
    states = steerers.activations(model, 1, ["neon"])[0]
    latents = torch.relu((states - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias)
    torch.testing.assert_close(dense.text.vector, latents @ sae.W_dec, rtol=1e-4, atol=1e-3)
    kept = torch.zeros_like(latents).scatter(1, latents.topk(8).indices, latents.topk(8).values)
    torch.testing.assert_close(topk.text.vector, kept @ sae.W_dec, rtol=1e-4, atol=1e-3)
    assert both.notes["phrase"] == "neon, fish"


def test_one_autoencoder_serves_all_concepts_and_is_kept(
    model: DiffusionModel, context: FitContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    train = steerers._train
    monkeypatch.setattr(steerers, "_train", lambda *given: made.append(given) or train(*given))
    shared = replace(context, cache=tmp_path, concepts=SUITE.concepts)
    kind = method("steerers")
    settings = {"tokens": 2_000, "batch": 200, "k": 8}
    kind(kind.Config(**settings)).prepare(shared, [NEON])
    kind(kind.Config(**settings)).prepare(shared, [FISH])
    vector = fit("steerers", shared, [NEON], learning_rate=3e-4, strength=-1.0).text.vector
    assert len(made) == 1
    fit("steerers", shared, [NEON], learning_rate=1e-4)
    fit("steerers", replace(shared, seed=1), [NEON], learning_rate=3e-4)
    assert len(made) == 3, "what it depends on makes another one"
    before = torch.get_rng_state()
    uncached = fit("steerers", replace(shared, cache=None), [NEON], learning_rate=3e-4).text.vector
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(uncached, vector)


def test_the_autoencoder_learns_the_texts_tokens(model: DiffusionModel, context: FitContext, tmp_path: Path) -> None:
    fit("steerers", replace(context, cache=tmp_path), [NEON], tokens=50_000, batch=250)
    sae = steerers.load_sae(next(tmp_path.rglob("sae.safetensors")).parent, torch.device("cpu"))
    tokens = steerers.activations(model, 1, context.texts(NEON).retain).flatten(0, 1)
    left = (sae.decode(sae.encode(tokens)) - tokens).square().sum() / (tokens - tokens.mean(0)).square().sum()
    assert left < 0.3


# SDXL


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load_model(miniature_sdxl.model(tmp_path_factory.mktemp("sdxl") / "base"), torch.device("cpu"))


@pytest.mark.parametrize("name", ["rece", "mace-cfr", "safree", "seot"])
def test_on_sdxl_states_change_and_the_pooled_text_stays(name: str, sdxl: DiffusionModel, tmp_path: Path) -> None:
    context = FitContext(sdxl, SUITE.texts, seed=0, steps=3, guidance_scale=5.0)
    pack(fit(name, context, [NEON, FISH])).save(tmp_path)
    erasure, _ = load_erasure(tmp_path, method(name).parts, torch.device("cpu"))
    (found,) = erasure.text.encode(sdxl, [PROMPT], "conditional", 3)
    expected = plain(sdxl, PROMPT, 3)
    assert all(torch.equal(own, expected.added["text_embeds"][0]) for own in found.added["text_embeds"])
    assert len(found.added["text_embeds"]) == len(found.embeds)
    assert not torch.equal(found.embeds[-1], expected.embeds[0])
    size = miniature_sdxl.SIZE
    request = replace(request_of(steps=3, scale=5.0), height=size, width=size)
    assert sample(sdxl, [Row(request, erasure)], torch.float32, SLOTS).latents.isfinite().all()


def test_on_sdxl_safree_projects_the_second_encoders_states_alone(sdxl: DiffusionModel) -> None:
    context = FitContext(sdxl, SUITE.texts, seed=0, steps=3, guidance_scale=5.0)
    (found,) = fit("safree", context, [NEON]).text.encode(sdxl, [PROMPT], "conditional", 3)
    moved = (found.embeds[0] != found.embeds[1]).any(0)
    assert not moved[:16].any()
    assert moved[16:].any()


def test_steerers_refuse_two_text_encoders_in_a_sentence(sdxl: DiffusionModel, tmp_path: Path) -> None:
    context = FitContext(sdxl, SUITE.texts, seed=0, steps=3, guidance_scale=5.0, cache=tmp_path)
    kind = method("steerers")
    for call in (kind().prepare, kind().fit):
        with pytest.raises(BenchError, match="one text encoder, and this one has two"):
            call(context, [NEON])

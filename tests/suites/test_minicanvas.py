from __future__ import annotations

import numpy as np
import pytest
from transformers import CLIPTokenizer

from bench.config import parse_targets
from bench.suites.minicanvas import NO_OBJECT, OBJECTS, STYLES, SUITE
from bench.suites.minicanvas.build.tokenizer import encode_for_training, train_tokenizer
from bench.suites.minicanvas.captions import (
    OBJECT_ONLY,
    OBJECT_SYNONYMS,
    OTHERS,
    PUBLISHED,
    STYLE_ONLY,
    STYLE_SYNONYMS,
    fill,
    training_caption,
    training_cells,
)
from bench.suites.minicanvas.render import render, render_many


def test_pictures_depend_on_their_cell_alone() -> None:
    cells = [(style, obj, seed) for seed in range(5) for style in STYLES for obj in (*OBJECTS, NO_OBJECT)]
    serial = render_many(cells, 1)
    assert serial.shape == (650, 64, 64, 3)
    assert serial.dtype == np.uint8
    assert np.array_equal(serial, render_many(cells, 2))
    assert np.array_equal(serial[7], render(*cells[7]))
    assert len({picture.tobytes() for picture in serial}) > 640


def test_an_object_changes_the_picture() -> None:
    for style in STYLES:
        pictures = np.stack([render(style, obj, 0) for obj in (*OBJECTS, NO_OBJECT)]).astype(float)
        apart = np.abs(pictures[:, None] - pictures[None]).mean((2, 3, 4))
        assert (apart + np.eye(len(apart)) * 99).min() > 1, style


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError):
        render("neon", "zebra", 0)
    with pytest.raises(KeyError):
        render("cubism", "fish", 0)


def test_training_and_reference_pictures_are_disjoint() -> None:
    training = {seed for budget in (1, 20, 21, 22, 90) for _, _, seed in training_cells(24_000, budget, 0.1)}
    assert len(training) == 5 * 24_000
    assert max(training) < 950_000_000


def test_language() -> None:
    assert len(PUBLISHED) == 2
    assert len(OTHERS) >= 8
    assert all(len(STYLE_SYNONYMS[style]) >= 3 for style in STYLES)
    assert all(len(OBJECT_SYNONYMS[obj]) >= 3 for obj in OBJECTS)
    words = [word for synonyms in (*STYLE_SYNONYMS.values(), *OBJECT_SYNONYMS.values()) for word in synonyms]
    assert len(set(words)) == len(words)
    names = {*STYLES, *OBJECTS}
    assert not [phrase for phrase in words if names & set(phrase.split())], "a synonym must not give the name away"


def test_the_tokenizer_knows_all_it_needs_and_no_more() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(SUITE.model_folder(), subfolder="tokenizer", local_files_only=True)
    unknown = tokenizer.unk_token_id
    for template in (*PUBLISHED, *OTHERS, *STYLE_ONLY, *OBJECT_ONLY):
        for style, styles in STYLE_SYNONYMS.items():
            for obj, objects in OBJECT_SYNONYMS.items():
                for text in (fill(template, style, obj), fill(template, styles[0], objects[1])):
                    ids = tokenizer(text).input_ids
                    assert len(ids) <= tokenizer.model_max_length
                    assert unknown not in ids[1:-1], text
    assert len(tokenizer) < 700


def test_a_token_that_training_never_sees_is_an_error(tmp_path) -> None:
    rng = np.random.default_rng(0)
    captions = [training_caption(style, obj, rng) for style, obj, _ in training_cells(4_000, 1, 0.06) for _ in range(4)]
    tokenizer = train_tokenizer(captions, tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)("A house image in neon style.") == tokenizer("A house image in neon style.")
    with pytest.raises(RuntimeError, match="occur in no training caption"):
        encode_for_training(tokenizer, captions[:50], 0)


def test_presets() -> None:
    sizes = {}
    for name, preset in SUITE.presets.items():
        targets = parse_targets(",".join(preset.concepts), SUITE)
        sizes[name] = [len(SUITE.requests(target, preset)) for target in targets]
        for target in targets:
            requests = SUITE.requests(target, preset)
            assert len({request.id for request in requests}) == len(requests)
            assert any(target.involves(r.style, r.object) for r in requests)
            assert {r.id for r in requests} <= {r.id for r in SUITE.base_requests(targets, preset)}
    assert sum(sizes["smoke"]) <= 8
    assert len(sizes["quick"]) == 6
    assert sizes["full"] == [120 * 5] * 22


def test_methods_are_never_told_the_evaluation_prompts() -> None:
    asked = {SUITE.prompt(style, obj) for style in STYLES for obj in OBJECTS}
    for concept in SUITE.concepts:
        texts = SUITE.texts(concept)
        assert not asked & {texts.target, texts.anchor, *texts.retain, *(phrase for pair in texts.pairs for phrase in pair)}
        assert all(concept.name in edited and concept.name not in guide for edited, guide in texts.pairs)
        assert not [text for text in texts.retain if concept.name in text.replace(".", "").split()]
        assert concept.name in texts.target
        assert concept.name not in texts.anchor

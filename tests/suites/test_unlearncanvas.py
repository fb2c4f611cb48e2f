"""UnlearnCanvas' two protocols: what is prompted, and UA, IRA and CRA by hand and by an independent recomputation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import registry
from bench.errors import BenchError
from bench.metrics.unlearning import CELL, below_floor, scores
from bench.suites.unlearncanvas import OFFICIAL, PROFILES, SAEURON, UnlearnCanvas
from bench.suites.unlearncanvas.anchors import sentences
from bench.suites.unlearncanvas.vocabulary import OBJECTS, SEED_IMAGES, STYLES, THEMES
from bench.types import Floors, Target

FULL = PROFILES["official"].presets["full"]


def test_names() -> None:
    assert (len(THEMES), len(STYLES), len(OBJECTS)) == (51, 50, 20)
    assert list(THEMES) == sorted(THEMES)
    assert list(OBJECTS) == sorted(OBJECTS)
    assert THEMES[38] == SEED_IMAGES
    assert [str(c) for c in PROFILES["official"].concepts[49:51]] == ["style:Winter", "object:Architectures"]


def test_a_suite_is_found_by_name_and_profile() -> None:
    assert registry.suite("unlearncanvas") is registry.suite("unlearncanvas@official") is PROFILES["official"]
    assert registry.suite("unlearncanvas@saeuron").key == "unlearncanvas@saeuron"
    assert registry.suite("unlearncanvas@official").key == "unlearncanvas"
    with pytest.raises(BenchError, match='Unknown profile of unlearncanvas "saeron": did you mean "saeuron"'):
        registry.suite("unlearncanvas@saeron")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_whole_protocol_is_357_000_pictures(profile: str) -> None:
    suite = PROFILES[profile]
    targets = [Target((concept,)) for concept in suite.concepts]
    counts = [len(suite.requests(target, FULL)) for target in targets]
    assert set(counts) == {5_100}
    assert sum(counts) == 357_000
    base = suite.base_requests(targets, FULL)
    assert len(base) == 5_100
    assert {request.seed for request in base} == {188, 288, 588, 688, 888}
    assert {(r.steps, r.guidance_scale, r.height, r.width) for r in base} == {(100, 9.0, 512, 512)}
    assert len({(request.seed, request.noise_key) for request in base}) == len(base), "each picture has noise of its own"


def test_a_profile_may_have_one_noise_a_seed() -> None:
    suite = UnlearnCanvas(replace(OFFICIAL, noise="seed"))
    base = suite.base_requests([Target.parse("style:Monet")], FULL)
    assert len({(request.seed, request.noise_key) for request in base}) == 5, "as UCE's public sampler has it"


def test_what_is_prompted() -> None:
    official = {r.prompt for r in PROFILES["official"].base_requests([Target.parse("style:Monet")], FULL)}
    assert "A Fishes image in Van Gogh style." in official
    assert "A Sea image in Seed Images style." in official
    assert len(official) == 1_020
    saeuron = {r.prompt for r in PROFILES["saeuron"].base_requests([Target.parse("style:Monet")], FULL)}
    assert "An image of Fishes in Van Gogh style." in saeuron
    assert "An image of Sea." in saeuron
    assert len(saeuron) == 1_020
    assert not any("Seed" in prompt for prompt in saeuron)


@pytest.mark.parametrize("profile", PROFILES)
def test_presets(profile: str) -> None:
    suite = PROFILES[profile]
    for target in map(Target.parse, suite.presets["smoke"].concepts):
        assert 3 <= len(suite.requests(target, suite.presets["smoke"])) <= 8
    for target in map(Target.parse, suite.presets["quick"].concepts):
        requests = suite.requests(target, suite.presets["quick"])
        own = [request for request in requests if target.involves(request.style, request.object)]
        assert len(own) == (20 if target.kind == "style" else 51)
        assert {request.object for request in requests} == set(OBJECTS)
        assert {request.style for request in requests} >= set(STYLES)
    with pytest.raises(BenchError, match=r"unlearncanvas.* has 5 seeds, --seeds asks for 6"):
        suite.requests(Target.parse("style:Monet"), type(FULL)("", (), 1, 6, 100))


def test_anchor_sentences_are_own_or_read(tmp_path: Path) -> None:
    own = {sentence for obj in OBJECTS for sentence in sentences(obj, None)}
    assert len(own) == 20 * 80
    (tmp_path / "sd_prompt_Cats.txt").write_text("".join(f"A cat number {k}.\n" for k in range(80)))
    assert sentences("Cats", tmp_path)[:2] == ("A cat number 0", "A cat number 1")
    with pytest.raises(BenchError, match=r"sd_prompt_Dogs.txt cannot be read"):
        sentences("Dogs", tmp_path)
    (tmp_path / "sd_prompt_Dogs.txt").write_text("A dog.\n")
    with pytest.raises(BenchError, match="has 1 lines, 80 are needed"):
        sentences("Dogs", tmp_path)


HAND = pd.DataFrame(
    [
        ("Monet", "Cats", 1, "Monet", "Cats"),
        ("Monet", "Dogs", 1, "Rust", "Dogs"),
        ("Rust", "Cats", 1, "Rust", "Cats"),
        ("Rust", "Dogs", 1, "Monet", "Sea"),
        (SEED_IMAGES, "Cats", 1, "Rust", "Dogs"),
        (SEED_IMAGES, "Dogs", 1, "Rust", "Dogs"),
        ("", "Cats", 1, "Rust", "Cats"),
        ("", "Dogs", 1, "Rust", "Cats"),
    ],
    columns=[*CELL, "style_pred", "object_pred"],
)


def test_by_hand_official() -> None:
    official = HAND[HAND["style"] != ""]
    style = scores(official, Target.parse("style:Monet"), OFFICIAL.rules)
    # Monet is seen in 1 of 2; Rust in 1 of 2, the photos are no style; cats in 2 of 3, dogs in 2 of 3, Monet's among them.
    assert (style.ua, style.ira, style.cra) == pytest.approx((1 / 2, 1 / 2, (2 / 3 + 2 / 3) / 2))
    assert (style.ua_n, style.ira_n, style.cra_n) == (2, 2, 6)
    obj = scores(official, Target.parse("object:Cats"), OFFICIAL.rules)
    # Cats in 2 of 3, the photo among them; dogs in 2 of 3; Monet 1 of 2, Rust 1 of 2, those of cats among them.
    assert (obj.ua, obj.ira, obj.cra) == pytest.approx((1 / 3, 2 / 3, 1 / 2))
    assert (obj.ua_n, obj.ira_n, obj.cra_n) == (3, 3, 4)


def test_by_hand_saeuron() -> None:
    saeuron = HAND[HAND["style"] != SEED_IMAGES]
    style = scores(saeuron, Target.parse("style:Monet"), SAEURON.rules)
    # CRA is of the pictures without a style alone: cats 1 of 1, dogs 0 of 1.
    assert (style.ua, style.ira, style.cra) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert (style.ua_n, style.ira_n, style.cra_n) == (2, 2, 2)
    obj = scores(saeuron, Target.parse("object:Cats"), SAEURON.rules)
    # Cats in 3 of 3 with the plain one; dogs in 1 of 3; styles: Monet 1 of 2, Rust 1 of 2.
    assert (obj.ua, obj.ira, obj.cra) == pytest.approx((0, 1 / 3, 1 / 2))
    assert (obj.ua_n, obj.ira_n, obj.cra_n) == (3, 3, 4)


def test_the_unedited_model_is_held_to_styles_that_are_concepts() -> None:
    # Monet 1/2, Rust 1/2; the photos, 0 of 2, do not count.
    assert below_floor(HAND[HAND["style"] != ""], OFFICIAL.rules, Floors(0.5, 0.5)) is None


def _recomputed(frame: pd.DataFrame, target: Target, profile: str) -> tuple[float, float, float]:
    """As the public scripts count, in numpy: accuracies per concept, then means."""
    kind = target.kind
    (name,) = target.names("style") | target.names("object")
    style, obj, style_pred, object_pred = (frame[c].to_numpy() for c in ("style", "object", "style_pred", "object_pred"))
    style_right, object_right = style == style_pred, obj == object_pred
    plain = style == ""
    if kind == "style":
        own = {s: style_right[style == s].mean() for s in STYLES}
        among = plain if profile == "saeuron" else np.ones(len(frame), bool)
        cross = [object_right[(obj == o) & among].mean() for o in OBJECTS]
    else:
        own = {o: object_right[obj == o].mean() for o in OBJECTS}
        cross = [style_right[style == s].mean() for s in STYLES]
    retained = [value for key, value in own.items() if key != name]
    return 1 - own[name], float(np.mean(retained)), float(np.mean(cross))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("target", ["style:Van_Gogh", "object:Jellyfish"])
def test_equals_an_independent_recomputation(profile: str, target: str) -> None:
    suite, rng = PROFILES[profile], np.random.default_rng(7)
    requests = suite.requests(Target.parse(target), FULL)
    frame = pd.DataFrame({"style": [r.style for r in requests], "object": [r.object for r in requests], "seed": [r.seed for r in requests]})
    right = rng.random((2, len(frame))) < 0.8
    frame["style_pred"] = np.where(right[0], frame["style"], rng.choice(THEMES, len(frame)))
    frame["object_pred"] = np.where(right[1], frame["object"], rng.choice(OBJECTS, len(frame)))
    found = scores(frame, Target.parse(target), suite.rules)
    assert (found.ua, found.ira, found.cra) == pytest.approx(_recomputed(frame, Target.parse(target), profile))
    expected = {
        ("official", "style"): (100, 4_900, 5_100), ("official", "object"): (255, 4_845, 5_000),
        ("saeuron", "style"): (100, 4_900, 100), ("saeuron", "object"): (255, 4_845, 5_000),
    }  # fmt: skip
    assert (found.ua_n, found.ira_n, found.cra_n) == expected[profile, Target.parse(target).kind]

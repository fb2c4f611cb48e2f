"""The shipped reference for artifacts: made for the shipped networks, of noise of its own, and it finds what is planted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.diffusion.loading import model_digest
from bench.metrics.artifacts import ArtifactReference
from bench.scoring import judge_all, load_judge
from bench.suites.minicanvas import NO_OBJECT, SUITE, MiniCanvas
from bench.suites.minicanvas.build.artifacts import LOT, PER_CELL, PLANTED, checker, class_requests, repeat_block, shuffle_patches
from bench.types import Target


@pytest.fixture(scope="module")
def shipped() -> ArtifactReference:
    path = SUITE.artifact_reference()
    assert path is not None
    return ArtifactReference.load(path)


def test_it_is_of_the_shipped_networks_and_small(shipped: ArtifactReference) -> None:
    path = SUITE.artifact_reference()
    assert path is not None
    assert path.stat().st_size < 400_000
    assert shipped.model == model_digest(SUITE.model_folder())
    assert shipped.judge == load_judge(SUITE, "artifact", torch.device("cpu")).digest
    assert shipped.means.shape[0] == 10 * 13
    noted = json.loads((SUITE.model_folder().parent / "build.json").read_text())["artifacts"]
    assert {name: noted[name] for name in shipped.notes} == shipped.notes


def test_one_unedited_picture_in_twenty_is_far_and_planted_artifacts_are_found(shipped: ArtifactReference) -> None:
    low, high = shipped.notes["far_interval"]
    assert low <= 0.05 <= high
    found = {name: values["auroc"] for name, values in shipped.notes["planted"].items()}
    assert set(found) == set(PLANTED)
    assert found["patch shuffle"] > 0.99
    assert min(found["saturation"], found["block repeat"], found["checker"]) > 0.9
    # Fine noise is what this network was trained to overlook: the metric says little of it.
    assert found["noise"] > 0.7


def test_true_pictures_are_near_and_shuffled_ones_far(shipped: ArtifactReference) -> None:
    judge = load_judge(SUITE, "artifact", torch.device("cpu"))
    pixels = next(SUITE.reference_pictures())[1][::8]

    def far(pictures: np.ndarray) -> float:
        return float(shipped.far(judge_all(judge, torch.from_numpy(pictures)).features.numpy()).mean())

    assert far(shuffle_patches(pixels, np.random.default_rng(0))) > 0.95
    assert far(pixels) < 0.5


def test_its_pictures_share_no_noise() -> None:
    suite = MiniCanvas()
    start = PER_CELL * 120
    known = class_requests(suite, 20)
    lots = [known, suite.split_requests("artifact", LOT, 20, start), suite.split_requests("artifact", LOT, 20, start + LOT)]
    evaluation = suite.base_requests([Target((suite.concepts[0],))], replace(suite.presets["full"], seeds=20, steps=20))
    noise = [(r.seed, r.noise_key) for lot in (*lots, evaluation) for r in lot]
    assert len(set(noise)) == len(noise)
    assert sum(r.object == NO_OBJECT for r in known) == 10 * PER_CELL
    assert {r.prompt for r in known if r.object == NO_OBJECT} == {f"A nothing image in {style} style." for style in suite.styles}


def test_weights_without_a_reference_have_none(tmp_path: Path) -> None:
    assert MiniCanvas(tmp_path).artifact_reference() is None


def test_planted_artifacts_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 190, (3, 64, 64, 3), dtype=np.uint8)
    for name, plant in PLANTED.items():
        planted = plant(pixels, np.random.default_rng(1))
        assert (planted.shape, planted.dtype) == (pixels.shape, np.uint8), name
        assert (planted != pixels).mean() > 0.5, name
    shuffled = shuffle_patches(pixels, rng)

    def patches(one: np.ndarray) -> set[bytes]:
        return {one[y : y + 16, x : x + 16].tobytes() for y in range(0, 64, 16) for x in range(0, 64, 16)}

    assert all(patches(a) == patches(b) for a, b in zip(pixels, shuffled, strict=True))
    assert patches(repeat_block(pixels, rng)[0]) == {pixels[0, 24:40, 24:40].tobytes()}
    assert set(np.unique(checker(pixels, rng).astype(int) - pixels)) == {-40, 40}

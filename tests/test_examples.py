"""Pictures that methods train on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.examples import Painter
from bench.suites.minicanvas import SUITE
from bench.suites.suite import Suite
from bench.types import Concept

HOUSE, NEON = Concept("object", "house"), Concept("style", "neon")


class WithoutPictures:
    """minicanvas, but that it has no pictures of its own."""

    def __getattr__(self, name: str) -> object:
        return getattr(SUITE, name)

    def example_pictures(self, requests: object) -> None:
        return None


def take(model: DiffusionModel, concept: Concept, count: int, shown: bool, suite: Suite = SUITE, steps: int = 2):  # type: ignore[no-untyped-def]
    return Painter(suite, model, steps, torch.float32, 8).examples(concept, count, shown)


@pytest.mark.parametrize("concept", [HOUSE, NEON])
def test_they_show_the_concept_and_their_anchors_do_not(model: DiffusionModel, concept: Concept) -> None:
    found = take(model, concept, 14, True)
    assert found.latents.shape == (14, *model.latent_shape)
    assert all(concept.name in prompt for prompt in found.prompts)
    assert not any(concept.name in anchor for anchor in found.anchors)
    assert all(len(prompt.split()) == len(anchor.split()) for prompt, anchor in zip(found.prompts, found.anchors, strict=True))
    others = take(model, concept, 14, False)
    assert not any(concept.name in prompt for prompt in others.prompts)
    assert others.anchors == others.prompts
    words = {word for prompt in others.prompts for word in prompt.rstrip(".").split()}
    assert len(words & set(SUITE.styles)) > 5
    assert len(words & set(SUITE.objects)) > 5


def test_fewer_are_the_first_of_more(model: DiffusionModel) -> None:
    many, few = take(model, HOUSE, 12, True), take(model, HOUSE, 5, True)
    assert few.prompts == many.prompts[:5]
    torch.testing.assert_close(few.latents, many.latents[:5], rtol=1e-3, atol=1e-4)


def test_true_pictures_are_what_the_autoencoder_makes_of_them(model: DiffusionModel) -> None:
    requests = SUITE.example_requests(HOUSE, 6, True, 2)
    pixels = torch.from_numpy(SUITE.example_pictures(requests))
    back = model.decode(take(model, HOUSE, 6, True).latents)
    assert (back.float() - pixels.float()).abs().mean() < 20


def test_without_pictures_the_model_samples_its_own_once(model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_ASSETS", str(tmp_path))
    suite = WithoutPictures()
    found = take(model, HOUSE, 3, True, suite)  # type: ignore[arg-type]
    assert found.latents.isfinite().all()

    def never(*arguments: object) -> Tensor:
        raise AssertionError("it was sampled a second time")

    monkeypatch.setattr("bench.examples.sample", never)
    torch.testing.assert_close(take(model, HOUSE, 3, True, suite).latents, found.latents)  # type: ignore[arg-type]

"""Published forms of a model give the same model, damaged ones a sentence."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import miniature
import pytest
import torch
from conftest import request_of

from bench.diffusion import architectures
from bench.diffusion.loading import load_model
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.errors import BenchError
from bench.interfaces import Erasure

CPU = torch.device("cpu")


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The tiny model, whose architecture stands in for SD 1.5's."""
    parts = miniature.parts()
    monkeypatch.setattr(architectures, "UNET", dict(parts["unet"].config))
    monkeypatch.setattr(architectures, "VAE", dict(parts["vae"].config))
    monkeypatch.setattr(architectures, "clip_text", lambda: parts["text_encoder"].config)
    return parts


def test_every_published_form_is_the_same_model(tmp_path: Path, mini: dict[str, object]) -> None:
    paths = [
        miniature.model(tmp_path / "safe"), miniature.model(tmp_path / "bin", safe=False),
        miniature.compvis(tmp_path / "compvis" / "compvis.ckpt", mini),
    ]  # fmt: skip
    assert list((tmp_path / "bin" / "unet").glob("*.bin"))
    models = [load_model(path, CPU) for path in paths]
    latents = [sample(model, [Row(request_of(steps=3), Erasure())], torch.float32, 2).latents for model in models]
    pictures = [model.decode(own) for model, own in zip(models, latents, strict=True)]
    for own, picture in zip(latents[1:], pictures[1:], strict=True):
        assert torch.equal(own, latents[0])
        assert torch.equal(picture, pictures[0])
    assert len({model.digest for model in models}) == 3


class _Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.place}",)


def test_a_checkpoint_that_would_run_code_does_not(tmp_path: Path, mini: dict[str, object]) -> None:
    torch.save({"state_dict": {"model.diffusion_model.x": _Evil(tmp_path / "ran")}}, tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    folder = miniature.model(tmp_path / "bin", safe=False)
    (next((folder / "unet").glob("*.bin"))).write_bytes((tmp_path / "evil.ckpt").read_bytes())
    for path in (tmp_path / "evil.ckpt", tmp_path / "plain.ckpt", folder):
        with pytest.raises(BenchError, match=r"no CompVis checkpoint|cannot be read"):
            load_model(path, CPU)
    assert not (tmp_path / "ran").exists()


def test_incomplete_checkpoints_are_a_sentence(tmp_path: Path, mini: dict[str, object]) -> None:
    whole = torch.load(miniature.compvis(tmp_path / "whole.ckpt", mini), weights_only=True)
    del whole["state_dict"]["model.diffusion_model.out.2.weight"]
    torch.save(whole, tmp_path / "short.ckpt")
    with pytest.raises(BenchError, match=r"it lacks conv_out\.weight"):
        load_model(tmp_path / "short.ckpt", CPU)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:1000])
    with pytest.raises(BenchError, match="is no CompVis checkpoint"):
        load_model(tmp_path / "cut.ckpt", CPU)

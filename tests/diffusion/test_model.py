from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SLOTS, request_of
from safetensors.torch import load_file, save_file

from bench.diffusion.loading import load_model, model_digest
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.errors import BenchError
from bench.interfaces import Erasure
from bench.suites.minicanvas import SUITE

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"


def cut(folder: Path) -> None:
    path = folder / UNET
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(folder: Path, name: str, key: str) -> None:
    path = next((folder / name).glob("*.safetensors"))
    tensors = load_file(path)
    del tensors[key]
    save_file(tensors, path, metadata={"format": "pt"})


def narrow(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 64}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / UNET).unlink(), "unet"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler"),
        (cut, "unet"),
        (narrow, "unet"),
        (lambda folder: lose(folder, "unet", "conv_in.bias"), "unet.*lacks conv_in.bias"),
        (lambda folder: lose(folder, "text_encoder", "encoder.layers.0.mlp.fc1.weight"), "text_encoder.*lacks"),
    ],
    ids=["index", "weights", "tokenizer", "scheduler", "truncated", "shape", "tensor", "text-tensor"],
)
def test_a_damaged_model_is_a_sentence_that_names_the_part(damage: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SUITE.model_folder(), folder)
    damage(folder)
    with pytest.raises(BenchError, match=f"{named}.*build"):
        load_model(folder, CPU)


def test_the_digest_follows_the_weights_not_the_place(tmp_path: Path) -> None:
    shutil.copytree(SUITE.model_folder(), tmp_path / "a")
    assert model_digest(tmp_path / "a") == model_digest(SUITE.model_folder())
    path = tmp_path / "a" / UNET
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert model_digest(tmp_path / "a") != model_digest(SUITE.model_folder())


def test_a_copy_made_while_weights_are_swapped_does_not_keep_them() -> None:
    model = load_model(SUITE.model_folder(), CPU)
    row = [Row(request_of(), Erasure())]
    key = "unet.conv_out.bias"
    with model.weights({key: torch.ones(4)}):
        edited = sample(model, row, torch.bfloat16, SLOTS).latents
    plain = sample(model, row, torch.bfloat16, SLOTS).latents
    assert not torch.equal(edited, plain)
    assert torch.equal(plain, sample(load_model(SUITE.model_folder(), CPU), row, torch.bfloat16, SLOTS).latents)


def test_text_is_encoded_alone_and_once(model: DiffusionModel) -> None:
    texts = ["a house", "a fish in neon style", "a house"]
    together = model.text_states(texts)
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], model.text_states([texts[1]])[0])
    assert together.shape == (3, model.max_tokens, 128)


def test_decoding_does_not_depend_on_neighbours(model: DiffusionModel) -> None:
    latents = torch.randn(20, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    whole = model.decode(latents)
    assert whole.shape == (20, 64, 64, 3)
    assert torch.equal(model.decode(latents[[7, 3]]), whole[[7, 3]])

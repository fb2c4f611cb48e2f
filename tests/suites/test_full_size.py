"""UnlearnCanvas at full size with random weights: SD 1.5, ViT-L, SAEs of 20,480 latents, within 20 GB. Minutes on two cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from bench.diffusion import architectures
from bench.diffusion.loading import load_model
from bench.suites.minicanvas import SUITE
from bench.suites.unlearncanvas import HOOKPOINTS
from bench.suites.unlearncanvas.vocabulary import OBJECTS, THEMES

pytestmark = pytest.mark.slow
MOST_GB = 20.0


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a researcher has downloaded, in half precision."""
    root = tmp_path_factory.mktemp("full") / "unlearncanvas"
    torch.manual_seed(0)
    text = architectures.clip_text()
    tokenizer = CLIPTokenizer.from_pretrained(SUITE.model_folder() / "tokenizer", local_files_only=True, model_max_length=77)
    text.vocab_size = len(tokenizer)  # the published tokenizer is on the Hub; its size changes nothing else
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**architectures.VAE), text_encoder=CLIPTextModel(text), tokenizer=tokenizer,
        unet=UNet2DConditionModel(**architectures.UNET), scheduler=DDIMScheduler(**architectures.SCHEDULER), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(root / "model")
    del pipe
    (root / "classifiers").mkdir()
    for name, classes in (("style50.pth", len(THEMES)), ("style50_cls.pth", len(OBJECTS))):
        network = timm.create_model("vit_large_patch16_224.augreg_in21k", pretrained=False, num_classes=classes)
        torch.save({"model_state_dict": network.state_dict()}, root / "classifiers" / name)
    for k in (1, 2):
        folder = root / "saes" / f"unet.up_blocks.1.attentions.{k}"
        folder.mkdir(parents=True)
        encoder = torch.nn.Linear(1280, 20_480)
        tensors = {
            "encoder.weight": encoder.weight.data,
            "encoder.bias": torch.zeros(20_480),
            "W_dec": encoder.weight.data.clone(),
            "b_dec": torch.zeros(1280),
        }
        save_file(tensors, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"expansion_factor": 16, "num_latents": 0, "k": 32, "d_in": 1280, "batch_topk": True}))
    return root.parent


def test_hook_points_are_what_the_saes_take(assets: Path) -> None:
    model = load_model(assets / "unlearncanvas" / "model", torch.device("cpu"))
    assert model.latent_shape == (4, 64, 64)
    seen: dict[str, torch.Size] = {}
    unet = model.sampling_unet(torch.bfloat16)
    for names in HOOKPOINTS.values():
        for name in names:
            unet.get_submodule(name).register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: out[0].shape}))
    with torch.no_grad():
        unet(torch.randn(2, 4, 64, 64).bfloat16(), torch.tensor([500, 500]), torch.randn(2, 77, 768).bfloat16())
    assert seen == {f"up_blocks.1.attentions.{k}": (2, 1280, 16, 16) for k in (1, 2)}


def test_smoke_from_end_to_end(assets: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "bench", "run", "--suite", "unlearncanvas", "--preset", "smoke", "--methods", "saeuron,saeuron-detect",
        "--dtype", "bfloat16", "--batch-size", "2", "--compile", "no", "--assets", str(assets), "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    began = time.monotonic()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    said = (tmp_path / "log").read_text()
    assert status == 0, said
    table = (tmp_path / "run" / "leaderboard.csv").read_text()
    assert "saeuron-detect" in table
    print(f"{time.monotonic() - began:.0f} s, {usage.ru_maxrss / 1e6:.1f} GB at most\n{said}")
    assert usage.ru_maxrss / 1e6 < MOST_GB

"""Make the weights of minicanvas from nothing: tokenizer, autoencoder, judges, diffusion model.

    python -m bench build minicanvas --out minicanvas-build

Parts build on each other in this order; each is seeded, checkpointed in `<out>/work` and continued by the same command.
The result, `<out>/weights`, has the layout of the weights that ship with the suite.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn

from bench.errors import unknown
from bench.files import write_atomic
from bench.suites.minicanvas.build.autoencoder import encode, reconstruct, train_autoencoder
from bench.suites.minicanvas.build.data import CAPTIONS_PER_PICTURE, Pictures, pictures
from bench.suites.minicanvas.build.diffusion import new_scheduler, train_diffusion
from bench.suites.minicanvas.build.judges import JUDGES, accuracy, held_out_pictures, train_judge
from bench.suites.minicanvas.build.tokenizer import encode_for_training, train_tokenizer
from bench.suites.minicanvas.build.training import Recipe, TrainingLog

PARTS = ("autoencoder", "judges", "diffusion")
PICTURES, PICTURE_SEED, EMPTY_SHARE, JUDGE_PICTURES, HELD_OUT = 24_000, 1, 0.06, 12_000, 4_000
BUDGETS: dict[str, dict[str, Recipe]] = {
    "small": {  # about 100 minutes on two CPU cores
        "autoencoder": Recipe(steps=1_700, batch=32, lr=2e-3, seed=11),
        "judges": Recipe(steps=700, batch=64, lr=2e-3, seed=21),
        "diffusion": Recipe(steps=3_600, batch=64, lr=1e-3, seed=31, ema=0.999),
    },
    "full": {  # minutes on a GPU
        "autoencoder": Recipe(steps=12_000, batch=64, lr=2e-3, seed=11),
        "judges": Recipe(steps=4_000, batch=128, lr=2e-3, seed=21),
        "diffusion": Recipe(steps=40_000, batch=128, lr=1e-3, seed=31, ema=0.9995),
    },
}


def build(out: Path, parts: tuple[str, ...], budget: str, device: torch.device, say: Callable[[str], None], command: str) -> Path:
    """Train the named parts (earlier ones are read from `out`), save them in half precision, return the weights' folder."""
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    recipes, work, weights = BUDGETS[budget], out / "work", out / "weights"
    work.mkdir(parents=True, exist_ok=True)
    say(f"rendering {PICTURES} pictures")
    data = pictures(PICTURES, PICTURE_SEED, EMPTY_SHARE, work)
    autoencoder, log = train_autoencoder(data.pixels, recipes["autoencoder"], work, device, say)
    if "autoencoder" in parts:
        half(autoencoder).save_pretrained(weights / "model" / "vae")
        _note(weights, "autoencoder", recipes["autoencoder"], log, command)
    if "judges" in parts:
        _build_judges(weights, autoencoder, recipes["judges"], work, device, say, command)
    if "diffusion" in parts:
        _build_diffusion(weights, data, autoencoder, recipes["diffusion"], work, device, say, command)
    return weights


def half(model: Any) -> Any:
    """A copy in half precision for saving; the trained model stays in single precision."""
    return copy.deepcopy(model).cpu().half()


def _build_judges(
    weights: Path, autoencoder: AutoencoderKL, recipe: Recipe, work: Path, device: torch.device, say: Callable[[str], None], command: str
) -> None:
    held_out = held_out_pictures(HELD_OUT)
    decoded = reconstruct(autoencoder, held_out.pixels)
    for name in JUDGES:
        judge, log = train_judge(name, autoencoder, JUDGE_PICTURES, recipe, work, device, say)
        judge.save(weights / "classifiers" / name)
        found = {"rendered": accuracy(judge, held_out.pixels, held_out), "after_autoencoder": accuracy(judge, decoded, held_out)}
        say(f"judge {name}: {found}")
        _note(weights, f"judge-{name}", recipe, log, command, held_out_accuracy=found, held_out_pictures=HELD_OUT, parameters=_size(judge))


def _build_diffusion(
    weights: Path,
    data: Pictures,
    autoencoder: AutoencoderKL,
    recipe: Recipe,
    work: Path,
    device: torch.device,
    say: Callable[[str], None],
    command: str,
) -> None:
    captions = data.captions(PICTURE_SEED)
    tokenizer = train_tokenizer(captions, weights / "model" / "tokenizer")
    ids = encode_for_training(tokenizer, captions, PICTURE_SEED)
    empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0]
    latents = encode(autoencoder, data.pixels) * autoencoder.config.scaling_factor
    text_encoder, unet, log = train_diffusion(
        latents, ids.view(len(latents), CAPTIONS_PER_PICTURE, -1), empty, len(tokenizer), recipe, work, device, say
    )
    StableDiffusionPipeline(
        vae=half(autoencoder), text_encoder=half(text_encoder), tokenizer=tokenizer,
        unet=half(unet), scheduler=new_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(weights / "model")  # fmt: skip
    _note(weights, "diffusion", recipe, log, command, parameters={"unet": _size(unet), "text_encoder": _size(text_encoder)})


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _note(weights: Path, part: str, recipe: Recipe, log: TrainingLog, command: str, **more: Any) -> None:
    """Record beside the weights how a part was made."""
    path = weights / "build.json"
    notes = json.loads(path.read_text()) if path.exists() else {}
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers", "timm", "numpy", "pillow")}
    notes[part] = {
        "command": command, "recipe": asdict(recipe), **asdict(log), **more, "versions": {"python": platform.python_version(), **packages},
    }  # fmt: skip
    write_atomic(path, (json.dumps(notes, indent=1, sort_keys=True) + "\n").encode())

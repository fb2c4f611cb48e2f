"""Make the weights of minicanvas from nothing: tokenizer, autoencoder, judges, diffusion model, reference for artifacts.

    python -m bench build minicanvas --out minicanvas-build

Parts build on each other in this order; each is seeded, checkpointed in `<out>/work` and continued by the same command.
The result, `<out>/weights`, has the layout of the weights that ship with the suite.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn

from bench.errors import BenchError, unknown
from bench.files import write_atomic
from bench.suites.minicanvas.build.artifacts import make_reference
from bench.suites.minicanvas.build.autoencoder import encode, reconstruct, train_autoencoder
from bench.suites.minicanvas.build.check import check
from bench.suites.minicanvas.build.data import CAPTIONS_PER_PICTURE, Pictures, pictures
from bench.suites.minicanvas.build.diffusion import new_scheduler, train_diffusion
from bench.suites.minicanvas.build.judges import JUDGES, accuracy, held_out_pictures, train_judge
from bench.suites.minicanvas.build.tokenizer import encode_for_training, train_tokenizer
from bench.suites.minicanvas.build.training import Recipe, TrainingLog

PARTS = ("autoencoder", "judges", "diffusion", "artifacts", "check")
PICTURES, PICTURE_SEED, EMPTY_SHARE, JUDGE_PICTURES, HELD_OUT = 24_000, 1, 0.06, 12_000, 4_000
BUDGETS: dict[str, dict[str, Recipe]] = {
    "small": {  # about 85 minutes on two CPU cores
        "autoencoder": Recipe(steps=1_700, batch=32, lr=2e-3, seed=11),
        "judges": Recipe(steps=700, batch=64, lr=2e-3, seed=21),
        "diffusion": Recipe(steps=3_000, batch=64, lr=1e-3, seed=31, ema=0.999),
    },
    "full": {  # minutes on a GPU
        "autoencoder": Recipe(steps=12_000, batch=64, lr=2e-3, seed=11),
        "judges": Recipe(steps=4_000, batch=128, lr=2e-3, seed=21),
        "diffusion": Recipe(steps=40_000, batch=128, lr=1e-3, seed=31, ema=0.9995),
    },
}


def build(out: Path, parts: tuple[str, ...], budget: str, device: torch.device, say: Callable[[str], None]) -> Path:
    """Make the named parts (those they need are read from `out`), save them in half precision, return the weights' folder."""
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    builder = Builder(out / "work" / budget, out / "weights", budget, device, say)
    if {"autoencoder", "judges", "diffusion"} & set(parts):
        try:
            builder.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(f"{out} cannot be written ({error.strerror}): choose another --out.") from error
    for part in PARTS:
        if part in parts:
            getattr(builder, part)()
    return builder.weights


@dataclass(frozen=True)
class Builder:
    """One build: checkpoints in `work`, results in `weights`; one method per part."""

    work: Path
    weights: Path
    budget: str
    device: torch.device
    say: Callable[[str], None]

    @cached_property
    def pictures(self) -> Pictures:
        """What autoencoder and diffusion model are trained on."""
        self.say(f"rendering {PICTURES} pictures")
        return pictures(PICTURES, PICTURE_SEED, EMPTY_SHARE, self.work)

    @cached_property
    def trained_autoencoder(self) -> tuple[AutoencoderKL, TrainingLog]:
        """Trained now, or read from its checkpoint."""
        return train_autoencoder(self.pictures.pixels, BUDGETS[self.budget]["autoencoder"], self.work, self.device, self.say)

    def autoencoder(self) -> None:
        """The picture's way to latents and back."""
        model, log = self.trained_autoencoder
        half(model).save_pretrained(self.weights / "model" / "vae")
        self._note("autoencoder", log, parameters=_size(model))

    def judges(self) -> None:
        """The three networks that judge, and how they do on pictures that none was trained on."""
        autoencoder, _ = self.trained_autoencoder
        held_out = held_out_pictures(HELD_OUT)
        decoded = reconstruct(autoencoder, held_out.pixels)
        for name in JUDGES:
            judge, log = train_judge(name, autoencoder, JUDGE_PICTURES, BUDGETS[self.budget]["judges"], self.work, self.device, self.say)
            judge.save(self.weights / "classifiers" / name)
            found = {"rendered": accuracy(judge, held_out.pixels, held_out), "after_autoencoder": accuracy(judge, decoded, held_out)}
            self.say(f"judge {name}: {found}")
            self._note(f"judge-{name}", log, held_out_accuracy=found, held_out_pictures=HELD_OUT, parameters=_size(judge))

    def diffusion(self) -> None:
        """Tokenizer, text encoder and denoiser; writes the whole pipeline folder."""
        autoencoder, _ = self.trained_autoencoder
        captions = self.pictures.captions(PICTURE_SEED)
        tokenizer = train_tokenizer(captions, self.weights / "model" / "tokenizer")
        ids = encode_for_training(tokenizer, captions, PICTURE_SEED)
        empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0]
        latents = encode(autoencoder, self.pictures.pixels) * autoencoder.config.scaling_factor
        text_encoder, unet, log = train_diffusion(
            latents, ids.view(len(latents), CAPTIONS_PER_PICTURE, -1), empty, len(tokenizer), BUDGETS[self.budget]["diffusion"],
            self.work, self.device, self.say,
        )  # fmt: skip
        StableDiffusionPipeline(
            vae=half(autoencoder), text_encoder=half(text_encoder), tokenizer=tokenizer, unet=half(unet), scheduler=new_scheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(self.weights / "model")  # fmt: skip
        self._note("diffusion", log, parameters={"unet": _size(unet), "text_encoder": _size(text_encoder)})

    def artifacts(self) -> None:
        """What the unedited model's pictures are like, so that artifacts can be told from them."""
        reference = make_reference(self.weights, self.device, self.say)
        reference.save(self.weights / "artifacts" / "reference.safetensors")
        self._write("artifacts", dict(reference.notes))

    def check(self) -> None:
        """Sample the result and record how often it shows what was asked for."""
        found = check(self.weights, self.device, self.say)
        self._write("check", found)
        if not found["passed"]:
            self.say("check: below the floors of the suite; train longer or look at the pictures")

    def _note(self, part: str, log: TrainingLog, **more: Any) -> None:
        """Record beside the weights how a part was made."""
        recipe = BUDGETS[self.budget]["judges" if part.startswith("judge") else part]
        self._write(part, {"recipe": asdict(recipe), **asdict(log), **more})

    def _write(self, part: str, note: dict[str, Any]) -> None:
        path = self.weights / "build.json"
        notes = json.loads(path.read_text()) if path.exists() else {}
        name = "judges" if part.startswith("judge") else part
        packages = {name: version(name) for name in ("torch", "diffusers", "transformers", "timm", "numpy", "pillow")}
        notes[part] = {
            **note, "command": f"python -m bench build minicanvas --part {name} --budget {self.budget}",
            "versions": {"python": platform.python_version(), **packages},
        }  # fmt: skip
        write_atomic(path, (json.dumps(notes, indent=1, sort_keys=True) + "\n").encode())


def half(model: Any) -> Any:
    """A copy in half precision for saving; the trained model stays in single precision."""
    return copy.deepcopy(model).cpu().half()


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())

"""Train the three judges of minicanvas: different networks, seeds and pictures, so that their errors differ too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from bench.registry import load_object
from bench.suites.minicanvas.build.autoencoder import reconstruct
from bench.suites.minicanvas.build.data import Pictures, pictures
from bench.suites.minicanvas.build.training import Recipe, TrainingLog, optimise
from bench.suites.minicanvas.render import NO_OBJECT, OBJECTS, STYLES

# Which job each network has is fixed here once: no network that tunes or measures artifacts ever evaluates.
JUDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "evaluation": ("resnet10t", {"channels": [32, 64, 96, 128]}),
    "tuning": ("densenet121", {"growth_rate": 16, "block_config": [3, 4, 6, 4]}),
    "artifact": ("mobilevit_xxs", {}),
}
EMPTY_SHARE = 0.12


def judge_pictures(name: str, count: int, folder: Path | None = None) -> Pictures:
    """The training pictures of one judge; no other network sees them."""
    return pictures(count, 20 + list(JUDGES).index(name), EMPTY_SHARE, folder)


def held_out_pictures(count: int) -> Pictures:
    """Pictures no network was trained on."""
    return pictures(count, 90, EMPTY_SHARE)


def _augment(pixels: Tensor) -> Tensor:
    """Shift by up to 3 px (edges repeated) and add faint noise, uint8 in and out."""
    dy, dx = (int(v) for v in torch.randint(-3, 4, (2,)))
    padded = F.pad(pixels.permute(0, 3, 1, 2).float(), (3, 3, 3, 3), mode="replicate")
    moved = padded[:, :, 3 + dy : 67 + dy, 3 + dx : 67 + dx]
    noisy = moved + torch.randn_like(moved) * (8 * torch.rand(len(moved), 1, 1, 1))
    return noisy.clamp(0, 255).byte().permute(0, 2, 3, 1)


def train_judge(
    name: str, autoencoder: AutoencoderKL, count: int, recipe: Recipe, folder: Path, device: torch.device, say: Callable[[str], None]
) -> tuple[Any, TrainingLog]:
    """Train on rendered pictures and, as often, on the same after the autoencoder: a judge must know what that does to them."""
    data = judge_pictures(name, count, folder)
    both = torch.stack([data.pixels, reconstruct(autoencoder, data.pixels)])
    torch.manual_seed(recipe.seed)
    architecture, arguments = JUDGES[name]
    judge = load_object("classifiers.two_head:TwoHeadClassifier")(architecture, arguments, STYLES, (*OBJECTS, NO_OBJECT)).to(device)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(data.style), (recipe.batch,))
        images = _augment(both[torch.randint(2, (recipe.batch,)), index])
        with torch.autocast(device.type, torch.bfloat16):
            out = judge(images.to(device))
        smooth = 0.05
        return F.cross_entropy(out.style, data.style[index].to(device), label_smoothing=smooth) + F.cross_entropy(
            out.object, data.object[index].to(device), label_smoothing=smooth
        )

    return judge, optimise(f"judge-{name}", judge, loss_of, recipe, folder, say)


@torch.no_grad()
def accuracy(judge: Any, pixels: Tensor, data: Pictures, batch: int = 256) -> dict[str, float]:
    """Share of right verdicts per head, on `pixels` that show what `data` says."""
    outs = [judge(part.to(next(judge.parameters()).device)) for part in pixels.split(batch)]
    style, obj = torch.cat([o.style for o in outs]).argmax(1).cpu(), torch.cat([o.object for o in outs]).argmax(1).cpu()
    return {"style": round(float((style == data.style).float().mean()), 5), "object": round(float((obj == data.object).float().mean()), 5)}

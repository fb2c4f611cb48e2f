"""The autoencoder of minicanvas: 64 x 64 x 3 pictures to 16 x 16 x 4 latents, a plain diffusers AutoencoderKL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from bench.suites.minicanvas.build.training import Recipe, TrainingLog, optimise

KL_WEIGHT = 1e-3


def new_autoencoder() -> AutoencoderKL:
    """Random weights; 0.8 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(24, 48, 64),
        layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip


def to_model(pixels: Tensor) -> Tensor:
    """uint8 [n, 64, 64, 3] to float32 [n, 3, 64, 64] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + 0.5 L2 + L1 of the horizontal and vertical differences, which keeps hatching and thin lines."""
    error = output - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * edges


def train_autoencoder(
    pictures: Tensor, recipe: Recipe, folder: Path, device: torch.device, say: Callable[[str], None]
) -> tuple[AutoencoderKL, TrainingLog]:
    """Train on uint8 pictures [n, 64, 64, 3]; sets `scaling_factor` so that scaled latents have unit variance."""
    torch.manual_seed(recipe.seed)
    model = new_autoencoder().to(device)

    def loss_of(step: int) -> Tensor:
        target = to_model(pictures[torch.randint(len(pictures), (recipe.batch,))]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = model.encode(target).latent_dist
            output = model.decode(posterior.sample()).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return _loss(output.float(), target) + KL_WEIGHT * divergence

    log = optimise("autoencoder", model, loss_of, recipe, folder, say)
    torch.manual_seed(recipe.seed)  # a continued build must find the same factor
    model.register_to_config(scaling_factor=round(float(1 / encode(model, pictures[:2048], sample=True).std()), 4))
    return model, log


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: Tensor, sample: bool = False, batch: int = 128) -> Tensor:
    """float32 [n, 4, 16, 16] on the CPU: unscaled posterior means, or means and log-variances drawn from if `sample`."""
    found = []
    for part in pictures.split(batch):
        posterior = model.encode(to_model(part).to(model.device)).latent_dist
        found.append((posterior.sample() if sample else posterior.mean).float().cpu())
    return torch.cat(found)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pictures: Tensor, batch: int = 128) -> Tensor:
    """uint8 [n, 64, 64, 3]: pictures after the autoencoder, as a sampled picture would come out of it."""
    found = []
    for part in pictures.split(batch):
        with torch.autocast(model.device.type, torch.bfloat16):
            output = model.decode(model.encode(to_model(part).to(model.device)).latent_dist.sample()).sample
        found.append(((output.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(found)

"""Train the text encoder and the denoiser of minicanvas together, on latents and captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bench.suites.minicanvas.build.training import Recipe, TrainingLog, optimise

EMPTY_PROMPT_SHARE = 0.1
MIN_SNR = 5.0  # loss weight min(SNR, 5) / SNR on the noise error (Hang et al. 2023, arXiv 2303.09556)


def new_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x, sampled with deterministic DDIM."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


def new_text_encoder(vocabulary: int, max_tokens: int) -> CLIPTextModel:
    """Random weights; 2 layers, 128 wide. Token 0 begins a text, token 1 ends and pads it."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=max_tokens, projection_dim=128, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    ))  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """Random weights; 5.9 M parameters, cross-attention at 16, 8 and 4 latent pixels."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 128, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


def train_diffusion(
    latents: Tensor,
    captions: Tensor,
    empty: Tensor,
    vocabulary: int,
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[CLIPTextModel, UNet2DConditionModel, TrainingLog]:
    """Train on scaled latents [n, 4, 16, 16] with token ids `captions` [n, k, L]; `empty` [L] is the empty prompt."""
    torch.manual_seed(recipe.seed)
    text_encoder, unet = new_text_encoder(vocabulary, captions.shape[2]), new_unet()
    model = nn.ModuleDict({"text_encoder": text_encoder, "unet": unet}).to(device)
    abar = new_scheduler().alphas_cumprod.to(device)
    weight = (abar / (1 - abar)).clamp(max=MIN_SNR) / (abar / (1 - abar))

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(latents), (recipe.batch,))
        ids = captions[index, torch.randint(captions.shape[1], (recipe.batch,))]
        ids = torch.where(torch.rand(recipe.batch, 1) < EMPTY_PROMPT_SHARE, empty, ids).to(device)
        # One draw spread evenly over the timesteps: each batch sees all noise levels.
        spread = (torch.rand(1) + torch.arange(recipe.batch) / recipe.batch) % 1
        t = (spread * 1000).long().to(device)
        clean, noise = latents[index].to(device), torch.randn(recipe.batch, *latents.shape[1:]).to(device)
        a = abar[t][:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16):
            states = text_encoder(ids).last_hidden_state
            predicted = unet(a.sqrt() * clean + (1 - a).sqrt() * noise, t, states).sample
        return ((predicted.float() - noise).square().mean((1, 2, 3)) * weight[t]).mean()

    log = optimise("diffusion", model, loss_of, recipe, folder, say)
    return text_encoder, unet, log

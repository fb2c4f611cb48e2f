"""SDXL and SDXL-Turbo in exactly their published format, but tiny and random; blocks have the names of SDXL-Turbo's hook points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bench.suites.minicanvas import SUITE

HOOKS = ("down_blocks.2.attentions.1", "mid_block.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1")
CHANNELS, LATENTS, KEPT, SIZE, POOLED = 32, 96, 4, 128, 24
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: Mapping[str, Any] = {
    "base": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
    "turbo": lambda: EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1),
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
}


def pipeline(scheduler: str = "base", zeros: bool = True) -> StableDiffusionXLPipeline:
    """Of 128 px."""
    torch.manual_seed(0)
    folder = SUITE.model_folder() / "tokenizer"
    first, second = (CLIPTokenizer.from_pretrained(folder, local_files_only=True) for _ in range(2))
    second.pad_token = second.convert_ids_to_tokens(2)  # as published: the second encoder sees other padding

    def text(tokenizer: CLIPTokenizer, width: int, **more: Any) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length, eos_token_id=tokenizer.eos_token_id, **more,
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=SIZE // 8, block_out_channels=(16, CHANNELS, CHANNELS), layers_per_block=2, norm_num_groups=8, cross_attention_dim=40,
        attention_head_dim=(2, 4, 4), transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 6 * 8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=4, sample_size=SIZE, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae, CLIPTextModel(text(first, 16)), CLIPTextModelWithProjection(text(second, 24, projection_dim=POOLED)), first, second, unet,
        SCHEDULERS[scheduler](), force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model(folder: Path, scheduler: str = "base", zeros: bool = True) -> Path:
    """A diffusers folder."""
    pipeline(scheduler, zeros).save_pretrained(folder)
    return folder


def state(seed: int = 0) -> dict[str, Tensor]:
    """Weights of an SAE under the names of the release."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(LATENTS, CHANNELS, generator=generator) / CHANNELS**0.5
    return {
        "encoder.weight": encoder, "decoder.weight": torch.randn(CHANNELS, LATENTS, generator=generator) / CHANNELS**0.5,
        "pre_bias": 0.1 * torch.randn(CHANNELS, generator=generator), "latent_bias": 0.1 * torch.randn(LATENTS, generator=generator),
        "stats_last_nonzero": torch.zeros(LATENTS, dtype=torch.int64),
    }  # fmt: skip


def sae(folder: Path, seed: int = 0) -> Path:
    """As in surokpro2/sdxl-saes."""
    folder.mkdir(parents=True)
    torch.save({"state_dict": state(seed)}, folder / "state_dict.pth")
    body = {"n_dirs_local": LATENTS, "d_model": CHANNELS, "k": KEPT, "auxk": 8, "dead_steps_threshold": 2441}
    (folder / "config.json").write_text(json.dumps(body))
    torch.save(torch.zeros(LATENTS), folder / "mean.pt")
    torch.save(torch.ones(LATENTS), folder / "std.pt")
    return folder

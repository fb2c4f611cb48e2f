"""Stable Diffusion 1.5's architecture as configurations, for checkpoints that do not bring their own."""

from __future__ import annotations

from typing import Any

from transformers import CLIPTextConfig

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1,
}  # fmt: skip


def clip_text() -> CLIPTextConfig:
    """Of the text encoder of CLIP ViT-L/14."""
    return CLIPTextConfig(
        vocab_size=49_408, hidden_size=768, intermediate_size=3_072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, projection_dim=768,
    )  # fmt: skip

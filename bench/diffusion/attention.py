"""Which attention a UNet computes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

MOST_SCORES = 256 * 256
"""Queries × keys up to which explicit scores were seen to pay: with more, they cost memory that fused attention never takes."""


def small_attention(device: torch.device, dtype: torch.dtype, compiled: bool) -> bool:
    """Whether scores are explicit where they are few: on a CPU, in bfloat16 or in a compiled graph.

    There the products run on matrix units, of which the fused kernel makes little use with heads as narrow as minicanvas'
    (16 channels), and a compiler fuses the softmax. A UNet call takes 4 to 9 % less, compiled a sixth; eager float32 ones take more.
    """
    return device.type == "cpu" and (compiled or dtype == torch.bfloat16)


class SmallAttention:
    """torch's fused attention, but explicit scores where they are few and `small_attention`."""

    def __init__(self) -> None:
        self.fused, self.explicit = AttnProcessor2_0(), AttnProcessor()

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As every processor of diffusers; hidden_states [S, tokens, C]."""
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        few = hidden_states.shape[1] * keys.shape[1] <= MOST_SCORES
        explicit = few and small_attention(hidden_states.device, hidden_states.dtype, torch.compiler.is_compiling())
        found: Tensor = (self.explicit if explicit else self.fused)(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return found


def use_small_attention(unet: nn.Module) -> None:
    """In every attention layer that has diffusers' default processor."""
    processor: Any = SmallAttention()
    for module in unet.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.set_processor(processor)

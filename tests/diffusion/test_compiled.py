"""Edits act in a compiled UNet as in the eager one; a tiny random network, as compiling takes long."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import request_of
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from test_sharing import FromStep
from transformers import CLIPTextConfig, CLIPTextModel

from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler
from bench.interfaces import Erasure, Weights

BLOCKS = ("mid_block.attentions.0", "up_blocks.0.attentions.0", "mid_block.resnets.1")
SLOTS = 8


@pytest.fixture(scope="module")
def tiny(model: DiffusionModel) -> DiffusionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(model.tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=model.max_tokens,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return DiffusionModel(model.tokenizer, CLIPTextModel(text), unet, vae, scheduler)


def test_edits_act_and_change_without_another_compilation(tiny: DiffusionModel) -> None:
    plain = [Row(replace(request_of(seed=seed), height=8, width=8), Erasure()) for seed in range(3)]
    edits = [Erasure(activations=(FromStep(below, factor, (BLOCKS[0],)),)) for below, factor in ((1000, 0.5), (502, 3.0))]
    rows = [*plain, *(Row(plain[0].request, erasure) for erasure in edits)]
    eager, compiled = (Sampler(tiny, torch.float32, SLOTS, compiled=compiled) for compiled in (False, True))
    expected, found = eager.all(rows), compiled.all(rows)
    torch.testing.assert_close(found.latents, expected.latents, rtol=1e-4, atol=1e-4)
    assert found.first_edit.tolist() == expected.first_edit.tolist() == [-1, -1, -1, 0, 1]
    assert torch.equal(replace(compiled, share=True).all(rows).latents, found.latents)
    assert torch.equal(compiled.all(rows[::-1]).latents.flip(0), found.latents)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    weaker = [Row(plain[0].request, Erasure(activations=(FromStep(1000, 0.9, (BLOCKS[0],)),)))]
    assert not torch.equal(compiled.all(weaker).latents[0], found.latents[3])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert torch.equal(eager.all(rows).latents, expected.latents), "hooks of the compiled one do nothing in the eager one"

    name = "unet.conv_out.bias"
    with tiny.weights(Weights({name: tiny.unet.conv_out.bias + 0.5}).values):
        changed = compiled.all(plain).latents
        torch.testing.assert_close(changed, eager.all(plain).latents, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed, found.latents[:3], atol=1e-2)
    torch.testing.assert_close(compiled.all(plain).latents, found.latents[:3], rtol=1e-4, atol=1e-4)


def test_edits_at_other_blocks(tiny: DiffusionModel) -> None:
    """They are sampled apart, eager, so that nobody's pictures change beside them."""
    row = Row(replace(request_of(seed=0), height=8, width=8), Erasure())
    eager, compiled = (Sampler(tiny, torch.float32, SLOTS, compiled=compiled) for compiled in (False, True))
    found = compiled.all([row])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    elsewhere = [Row(row.request, Erasure(activations=(FromStep(1000, 0.5, (block,)),))) for block in BLOCKS[1:]]
    together = compiled.all([elsewhere[1], row, elsewhere[0]])
    assert torch.equal(together.latents[1], found.latents[0])
    assert torch.equal(together.latents[0], eager.all(elsewhere[1:]).latents[0])
    torch.testing.assert_close(together.latents[2], eager.all(elsewhere[:1]).latents[0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(together.latents[2], found.latents[0])
    assert together.first_edit.tolist() == [0, -1, 0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs

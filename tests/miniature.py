"""Every published file of UnlearnCanvas and its SAEs, in exactly its format, but tiny and random."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)  # fmt: skip

from bench.suites.minicanvas import SUITE
from bench.suites.unlearncanvas.vocabulary import OBJECTS, THEMES

CHANNELS, LATENTS, KEPT = 32, 128, 8


def parts() -> dict[str, Any]:
    """A Stable Diffusion of 64 px whose blocks have the names of SD 1.5's hook points."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(SUITE.model_folder() / "tokenizer", local_files_only=True)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(CHANNELS, CHANNELS), layers_per_block=2, norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, sample_size=64, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(text), "unet": unet, "vae": vae, "scheduler": scheduler}


def model(folder: Path, safe: bool = True) -> Path:
    """A diffusers folder; of 2024 and before some have `.bin` files."""
    pipe = StableDiffusionPipeline(**parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(folder, safe_serialization=safe)
    return folder


def compvis(path: Path, networks: Mapping[str, Any]) -> Path:
    """The same weights under the names of the CompVis code, with the tokenizer beside."""
    state = {f"model.diffusion_model.{_unet_name(key)}": value for key, value in networks["unet"].state_dict().items()}
    for key, value in networks["vae"].state_dict().items():
        name = _vae_name(key)
        convolution = "attn_1" in name and name.endswith("weight") and "norm" not in name
        state[f"first_stage_model.{name}"] = value[:, :, None, None] if convolution else value
    for key, value in networks["text_encoder"].state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "global_step": 19_999}, path)
    networks["tokenizer"].save_pretrained(path.parent / "tokenizer")
    return path


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
LAYERS = 2


def _unet_name(key: str) -> str:
    place, _, kind = key.rpartition(".")
    if place in _OUTER:
        return f"{_OUTER[place]}.{kind}"
    block, *rest = place.split(".")
    if block == "mid_block":
        number = 2 * int(rest[1]) + (rest[0] == "attentions")
        return f"middle_block.{number}.{_inner(rest)}.{kind}"
    level, what, index, *_ = rest
    if block == "down_blocks":
        at = 1 + int(level) * (LAYERS + 1) + (LAYERS if what == "downsamplers" else int(index))
        if what == "downsamplers":
            return f"input_blocks.{at}.0.op.{kind}"
        return f"input_blocks.{at}.{int(what == 'attentions')}.{_inner(rest[1:])}.{kind}"
    at = int(level) * (LAYERS + 1) + (LAYERS if what == "upsamplers" else int(index))
    if what == "upsamplers":  # after the resnet, and the attention where the block has any; the first has none
        return f"output_blocks.{at}.{1 if level == '0' else 2}.conv.{kind}"
    return f"output_blocks.{at}.{int(what == 'attentions')}.{_inner(rest[1:])}.{kind}"


def _inner(rest: list[str]) -> str:
    """Below a resnet its own names, below an attention the same."""
    what, _, *own = rest
    return _RESNET[own[0]] if what == "resnets" else ".".join(own)


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae_name(key: str) -> str:
    place, _, kind = key.rpartition(".")
    side, *rest = place.split(".")
    if not rest or side not in ("encoder", "decoder"):
        return key  # quant_conv
    if rest[0] in ("conv_in", "conv_out"):
        return key
    if rest[0] == "conv_norm_out":
        return f"{side}.norm_out.{kind}"
    if rest[0] == "mid_block":
        own = ".".join(rest[3:])
        middle = f"attn_1.{_VAE_ATTENTION[own]}" if rest[1] == "attentions" else f"block_{int(rest[2]) + 1}.{own}"
        return f"{side}.mid.{middle}.{kind}"
    level = int(rest[1]) if side == "encoder" else 3 - int(rest[1])
    direction = "down" if side == "encoder" else "up"
    if rest[2] in ("downsamplers", "upsamplers"):
        return f"{side}.{direction}.{level}.{rest[2][:-3]}e.conv.{kind}"
    return f"{side}.{direction}.{level}.block.{rest[3]}.{rest[4].replace('conv_shortcut', 'nin_shortcut')}.{kind}"


def classifiers(folder: Path) -> Path:
    """`style50.pth` and `style50_cls.pth`, whose dictionaries hold more than weights, as training scripts leave them."""
    folder.mkdir(parents=True)
    for name, classes in (("style50.pth", len(THEMES)), ("style50_cls.pth", len(OBJECTS))):
        torch.manual_seed(classes)
        network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=classes)
        torch.save({"model_state_dict": network.state_dict(), "epoch": 3, "loss": 0.5}, folder / name)
    return folder


def sae(folder: Path, seed: int = 0) -> Path:
    """As on the Hub; `cfg.json` with a field that no one knows."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(LATENTS, CHANNELS, generator=generator) / CHANNELS**0.5
    tensors = {
        "encoder.weight": encoder, "encoder.bias": torch.zeros(LATENTS), "W_dec": encoder / encoder.norm(dim=1, keepdim=True),
        "b_dec": torch.zeros(CHANNELS),
    }  # fmt: skip
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "sae.safetensors")
    config = {
        "expansion_factor": LATENTS // CHANNELS, "normalize_decoder": True, "num_latents": 0, "k": KEPT, "batch_topk": True,
        "sample_topk": False, "input_unit_norm": False, "multi_topk": False, "d_in": CHANNELS, "signed": False,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def saes(folder: Path) -> Path:
    """Both hook points."""
    for k in (1, 2):
        sae(folder / f"unet.up_blocks.1.attentions.{k}", k)
    return folder


def latents(path: Path, names: Sequence[str], steps: int, prompts: int = 3) -> Path:
    """As `gather_sae_acts_ca_prompts.py` leaves them: a plain pickle of {concept: float16 [prompts, steps, latents]}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    body = {name: torch.rand(prompts, steps, LATENTS, generator=generator).half() for name in names}
    path.write_bytes(pickle.dumps(body))
    return path


def class_params(path: Path, values: Mapping[str, tuple[float, float]]) -> Path:
    """As `find_best_params_cls_sweep.py` leaves it, with the average that its metrics file has too."""
    body = {name: {"percentile": percentile, "multiplier": multiplier} for name, (percentile, multiplier) in values.items()}
    torch.save({**body, "average": {"percentile": 99.99, "multiplier": -5.0}}, path)
    return path


def clip(folder: Path) -> Path:
    """A CLIP model with the tiny vocabulary of minicanvas."""
    torch.manual_seed(0)
    tokenizer = parts()["tokenizer"]
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def qwen2_vl(folder: Path) -> Path:
    """A Qwen2-VL model as on the Hub, that knows the letters and three words."""
    torch.manual_seed(0)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    letters = sorted(ByteLevel.alphabet())
    tokens = {token: place for place, token in enumerate([*letters, "Ye", "Yes", "No"])}
    bpe = Tokenizer(BPE(tokens, [("Y", "e"), ("Ye", "s"), ("N", "o")]))
    bpe.pre_tokenizer, bpe.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    bpe.add_special_tokens(special)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": special}
    tokenizer = Qwen2TokenizerFast(tokenizer_object=bpe, **named)
    ids = dict(zip(("image_token_id", "video_token_id"), tokenizer.convert_tokens_to_ids(special[-2:]), strict=True))
    start, end = tokenizer.convert_tokens_to_ids(special[3:5])
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, vision_start_token_id=start, vision_end_token_id=end, **ids)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    videos = Qwen2VLVideoProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    pictures = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    Qwen2VLProcessor(image_processor=pictures, tokenizer=tokenizer, video_processor=videos, chat_template=template).save_pretrained(folder)
    return folder


def images(folder: Path, cells: Mapping[tuple[str, str], int]) -> Path:
    """`Style/Object/1.jpg` … of random pixels, so many a cell."""
    rng = np.random.default_rng(0)
    for (theme, obj), count in cells.items():
        (folder / theme / obj).mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / theme / obj / f"{number}.jpg")
    return folder


def parquet(folder: Path, images: Path) -> Path:
    """As on the Hub: columns image and text alone, captions as in training."""
    folder.mkdir(parents=True)
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "text": f"A {path.parent.name} image in {_caption(path)} style."}
        for path in sorted(images.rglob("*.jpg"))
    ]  # fmt: skip
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-{number:05}-of-00002.parquet")
    return folder


def _caption(path: Path) -> str:
    theme = path.parents[1].name
    return "Photo" if theme == "Seed_Images" else theme.replace("_", " ")


class _Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2048, 32, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu().mean(3).mean(2)


class _Script(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def inception(path: Path) -> Path:
    """TorchScript with the attribute that clean-fid takes of the published file."""
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(_Script().eval()), path)
    return path


def anchor_prompts(folder: Path) -> Path:
    """`sd_prompt_{Object}.txt`, 80 lines each."""
    folder.mkdir(parents=True)
    for obj in OBJECTS:
        (folder / f"sd_prompt_{obj}.txt").write_text("".join(f"{obj} number {line}\n" for line in range(80)))
    return folder


def everything(root: Path) -> Path:
    """What a run needs, below a folder of assets."""
    own = root / "unlearncanvas"
    model(own / "model" / "style50" / "step19999")  # a Drive folder brings folders of its own
    classifiers(own / "classifiers")
    saes(own / "saes")
    return root

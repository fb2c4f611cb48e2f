"""Published models read into a `DiffusionModel`: diffusers folders and CompVis checkpoints of Stable Diffusion 1.x."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from bench.diffusion import architectures
from bench.diffusion.model import DiffusionModel
from bench.errors import BenchError
from bench.files import sha256_file

NETWORKS = ("text_encoder", "unet", "vae")
WEIGHTS = ("*.safetensors", "*.bin")
"""The libraries read the second kind, where there is none of the first, with torch.load(weights_only=True)."""


def load_model(path: Path, device: torch.device) -> DiffusionModel:
    """A diffusers folder, or a CompVis checkpoint, in float32. BenchError names what is missing or damaged."""
    diffusers.logging.set_verbosity_error()  # it warns of the cast to bfloat16 that `sampling_unet` means to make
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return _compvis(path, device) if path.is_file() else _folder(path, device)


def _folder(folder: Path, device: torch.device) -> DiffusionModel:
    if not (folder / "model_index.json").is_file():
        raise BenchError(f"{folder} is no diffusers model folder (model_index.json is missing): restore it or build it again.")
    kinds = {
        "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL,
        "scheduler": DDIMScheduler,
    }  # fmt: skip
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        network = name in NETWORKS
        if network and not any(file for pattern in WEIGHTS for file in (folder / name).glob(pattern)):
            raise BenchError(f"{folder / name} holds no .safetensors file: restore it or build the model again.")
        try:
            parts[name] = _network(kind, folder, name, device) if network else _rest(kind, folder, name)
        except Exception as error:  # safetensors, diffusers and transformers each raise their own kinds for one fact
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise BenchError(f"{folder / name} cannot be read ({first}): restore it or build the model again.") from error
    if len(parts["tokenizer"]) != parts["text_encoder"].config.vocab_size:
        raise BenchError(f"{folder / 'tokenizer'} does not fit the text encoder: restore it or build the model again.")
    return DiffusionModel(**parts, digest=model_digest(folder))


def _network(kind: Any, folder: Path, name: str, device: torch.device) -> Any:
    """In float32. The libraries fill what a file lacks with random numbers, which must never pass for the model."""
    part, info = kind.from_pretrained(
        folder, subfolder=name, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
    )  # fmt: skip
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking:
        raise ValueError(f"it lacks {lacking[0]}")
    return part.to(device)


def _rest(kind: Any, folder: Path, name: str) -> Any:
    if not any((folder / name).glob("*.json")):
        raise FileNotFoundError("its files are missing")
    return kind.from_pretrained(folder, subfolder=name, local_files_only=True)


def model_digest(path: Path) -> str:
    """SHA-256 over the weights, the tokenizer and the schedule of a diffusers folder, or of a checkpoint file."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".bin", ".json") and p.name != "model_index.json")
    table = {str(p.relative_to(path)): sha256_file(p) for p in files}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _compvis(path: Path, device: torch.device) -> DiffusionModel:
    """Stable Diffusion 1.x under the names of the CompVis code, in a dictionary `state_dict`; the tokenizer comes from elsewhere."""
    unet, vae = UNet2DConditionModel(**architectures.UNET), AutoencoderKL(**architectures.VAE)
    text = CLIPTextModel(architectures.clip_text())
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        _fill(unet, convert_ldm_unet_checkpoint(state, dict(unet.config)))
        _fill(vae, convert_ldm_vae_checkpoint(state, dict(vae.config)))
        _fill(text, _named_as(text, convert_ldm_clip_checkpoint(state)))
    except Exception as error:  # torch raises pickle's, zipfile's and its own kinds for one fact
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(
            f"{path} is no CompVis checkpoint of Stable Diffusion 1.x ({first}): give another, or a diffusers folder."
        ) from error
    scheduler = DDIMScheduler(**architectures.SCHEDULER)
    return DiffusionModel(_tokenizer(path), text.to(device), unet.to(device), vae.to(device), scheduler, model_digest(path))


def _fill(network: nn.Module, state: dict[str, Any]) -> None:
    """All of its weights, each of its shape. ValueError for one that is missing."""
    found = network.load_state_dict(state, strict=False)
    if found.missing_keys:
        raise ValueError(f"it lacks {found.missing_keys[0]} and {len(found.missing_keys) - 1} others")


def _named_as(text: CLIPTextModel, state: dict[str, Any]) -> dict[str, Any]:
    """Versions of transformers differ in whether names of the text encoder begin with "text_model."."""
    prefix = "text_model."
    if next(iter(text.state_dict())).startswith(prefix):
        return state
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _tokenizer(path: Path) -> CLIPTokenizer:
    """From a folder `tokenizer` beside the checkpoint, or the one of CLIP ViT-L/14 from the Hub or its cache."""
    beside = path.parent / "tokenizer"
    try:
        return CLIPTokenizer.from_pretrained(beside if beside.is_dir() else architectures.CLIP_TOKENIZER)
    except Exception as error:  # the hub's own kinds, and OSError
        raise BenchError(
            f"A CompVis checkpoint has no tokenizer, and that of {architectures.CLIP_TOKENIZER} could not be had: put its files"
            f" (vocab.json, merges.txt) into {beside}."
        ) from error

"""Published models read into a `DiffusionModel`: diffusers folders of Stable Diffusion 1.x and SDXL, CompVis checkpoints of 1.x."""

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
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bench.diffusion import architectures
from bench.diffusion.model import DiffusionModel
from bench.errors import BenchError
from bench.files import sha256_file

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
INDEX, ZEROS = "model_index.json", "force_zeros_for_empty_prompt"
WEIGHTS = ("*.safetensors", "*.bin")
"""The libraries read the second kind, where there is none of the first, with torch.load(weights_only=True)."""


def load_model(path: Path, device: torch.device) -> DiffusionModel:
    """A diffusers folder, or a CompVis checkpoint, in float32. BenchError names what is missing or damaged."""
    quiet_libraries()
    return _compvis(path, device) if path.is_file() else _folder(path, device)


def quiet_libraries() -> None:
    """Let them tell of errors alone: diffusers warns of the cast to bfloat16 that `sampling_unet` means to make."""
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _folder(folder: Path, device: torch.device) -> DiffusionModel:
    index = _index(folder)
    kinds: dict[str, Any] = {
        "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL,
        "scheduler": DDIMScheduler,
    }  # fmt: skip
    if _is_xl(index):
        kinds |= {"tokenizer_2": CLIPTokenizer, "text_encoder_2": CLIPTextModelWithProjection}
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
    for suffix in ("", "_2") if _is_xl(index) else ("",):
        if len(parts[f"tokenizer{suffix}"]) != parts[f"text_encoder{suffix}"].config.vocab_size:
            raise BenchError(f"{folder / f'tokenizer{suffix}'} does not fit the text encoder: restore it or build the model again.")
    _check_widths(folder, parts)
    return DiffusionModel(**parts, digest=model_digest(folder), empty_is_zero=_is_xl(index) and bool(index.get(ZEROS, True)))


def _index(folder: Path) -> dict[str, Any]:
    """The list of a pipeline's parts."""
    try:
        body = json.loads((folder / INDEX).read_text())
        if not isinstance(body, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError as error:
        raise BenchError(f"{folder} is no diffusers model folder ({INDEX} is missing): restore it or build it again.") from error
    except (OSError, ValueError) as error:
        raise BenchError(f"{folder / INDEX} cannot be read ({error}): restore it or build the model again.") from error
    return body


def _is_xl(index: dict[str, Any]) -> bool:
    """Whether there is a second text encoder: a missing part is null, or [null, null]."""
    return any(index.get("text_encoder_2") or ())


def _check_widths(folder: Path, parts: dict[str, Any]) -> None:
    """BenchError for a UNet that reads other texts than the encoders write, which would fail in the midst of its first call."""
    unet, second = parts["unet"].config, parts.get("text_encoder_2")
    encoders = [parts["text_encoder"], *([second] if second is not None else [])]
    written: list[Any] = [sum(encoder.config.hidden_size for encoder in encoders), None, None]
    if second is not None:
        written[1:] = "text_time", second.config.projection_dim + 6 * (unet.addition_time_embed_dim or 0)
    read = [unet.cross_attention_dim, unet.addition_embed_type, unet.projection_class_embeddings_input_dim]
    if read != written:
        raise BenchError(
            f"{folder / 'unet'} reads {read}, the text encoders write {written} (width of the states, kind and width of what is added):"
            " restore the folder or build the model again."
        )


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
    if kind is not DDIMScheduler:
        return kind.from_pretrained(folder, subfolder=name, local_files_only=True)
    config = DDIMScheduler.load_config(folder, subfolder=name, local_files_only=True)
    # Clipping is DDIM's default alone: that another scheduler's file does not name it does not ask for it.
    never = {} if "clip_sample" in config or config.get("_class_name") == "DDIMScheduler" else {"clip_sample": False}
    return DDIMScheduler.from_config(config, **never)


def model_digest(path: Path) -> str:
    """SHA-256 over the weights, the tokenizers and the schedule of a diffusers folder, or of a checkpoint file."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".bin", ".json", ".txt") and p.name != INDEX)
    table = {str(p.relative_to(path)): sha256_file(p) for p in files}
    index = _index(path)
    if _is_xl(index):  # it says what the empty text is
        table[ZEROS] = str(bool(index.get(ZEROS, True)))
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

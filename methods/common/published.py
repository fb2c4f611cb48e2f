"""Files that others left of their unlearned models: what each is, and its tensors under this model's names.

| kind | what | how it is known |
| --- | --- | --- |
| weights | a diffusers folder, a UNet, some of its weights, `{"unet": …, "text_encoder": …}`, a text encoder's folder | names |
| compvis | a checkpoint of Stable Diffusion 1.x under the names of the CompVis code, or some of its weights | `model.diffusion_model.` |
| adapters | low-rank adapters as kohya's scripts and SPM save them, or of the UNet alone as diffusers does | `lora_unet_`, `.lora_A.` |
| erasers | Receler's, `{transformer block: {down.weight, down.bias, up.weight, up.bias}}` | names |

That Receler's file is a dictionary by transformer block is known; the names within and of the blocks are UNVERIFIED.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from bench.api import BenchError, sha256_file, tree_digest
from methods.common import compvis

Kind = Literal["weights", "compvis", "adapters", "erasers"]
NETWORKS = ("unet", "text_encoder", "text_encoder_2")
_ADAPTERS, _SAE = ("lora_unet_", "lora_te"), ("W_dec", "encoder.weight")
_UNET = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.", "up_blocks.", "conv_norm_out.", "conv_out.", "add_embedding.")
_TEXT = ("text_model.", "embeddings.", "encoder.layers.", "final_layer_norm.")
_ERASER = ("down.weight", "down.bias", "up.weight", "up.bias")


@dataclass(frozen=True, eq=False)
class Published:
    """What a file or folder holds."""

    kind: Kind
    tensors: Mapping[str, Tensor]
    """On the CPU, in the file's precision. Weights are named "unet.…", "text_encoder.…", "text_encoder_2.…"; others as in the file."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def kind_of(path: Path) -> Kind:
    """What `read` would find. BenchError as there."""
    return _kind_of(path, _stamp(path))


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or over a folder's files."""
    return _digest_of(path, _stamp(path))


def read(path: Path) -> Published:
    """BenchError for a path without a file, a damaged file, one that is more than tensors, and one of no known kind."""
    if not path.exists():
        raise BenchError(f"There is no file or folder {path}: give the path of a checkpoint (python -m bench show checkpoint).")
    if path.is_dir():
        return _folder(path)
    tensors, metadata = _file(path)
    kind, named = _named(path, tensors)
    return Published(kind, named, metadata)


@lru_cache(maxsize=1024)
def _kind_of(path: Path, stamp: tuple[Any, ...]) -> Kind:
    return read(path).kind


@lru_cache(maxsize=1024)
def _digest_of(path: Path, stamp: tuple[Any, ...]) -> str:
    return tree_digest(path) if path.is_dir() else sha256_file(path)


def _stamp(path: Path) -> tuple[Any, ...]:
    """Other where the files have changed, so that gigabytes need not be read for every concept."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
    return tuple((file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()])


def _folder(folder: Path) -> Published:
    """A diffusers pipeline, a UNet or a text encoder."""
    if (folder / "model_index.json").is_file():
        found = {name: _weights(folder / name) for name in NETWORKS if (folder / name).is_dir()}
        return Published("weights", dict(_flat(found)))
    if (folder / "cfg.json").is_file() or any(folder.glob("*/cfg.json")):
        raise _is_sae(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        kinds = {config.get("_class_name"), *config.get("architectures", ())}
    except (OSError, ValueError, AttributeError, TypeError):
        kinds = set()
    if not kinds & {"UNet2DConditionModel", "CLIPTextModel"}:
        raise BenchError(f"{folder} is no diffusers folder, no UNet and no CLIP text encoder: give the folder with model_index.json.")
    network = "unet" if "UNet2DConditionModel" in kinds else "text_encoder"
    return Published("weights", dict(_flat({network: _weights(folder)})))


def _weights(folder: Path) -> dict[str, Tensor]:
    """Of one network: safetensors if there are any, in parts or whole, else pickled ones; those of a variant only where no others are."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        plain = [file for file in files if ".fp16." not in file.name and ".non_ema." not in file.name]
        if files:
            return {name: tensor for file in plain or files for name, tensor in _file(file)[0].items()}
    raise BenchError(f"{folder} holds no weights (.safetensors or .bin): restore it.")


def _file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, dictionaries in dictionaries joined with dots, and safetensors' metadata. No pickled code is run."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                metadata = opened.metadata() or {}
            return load_file(path), metadata
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if not isinstance(found, Mapping):
            raise ValueError(f"it is a {type(found).__name__}, no dictionary")
    except Exception as error:  # torch raises pickle's, zipfile's and its own kinds for one fact, safetensors its own
        raise BenchError(f"{path} cannot be read as tensors ({_why(error)}): it is damaged, or holds more than tensors.") from error
    tensors = dict(_flat(found))
    prefix = "state_dict."
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return inner or tensors, {}


def _flat(found: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Counters, settings and whatever else training scripts put beside tensors are left out."""
    for name, value in found.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")


def _named(path: Path, tensors: dict[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
    """The kind of a file, and weights with their network's name before them."""

    def some(prefixes: str | tuple[str, ...]) -> bool:
        return any(name.startswith(prefixes) for name in tensors)

    if some(_ADAPTERS):
        return "adapters", tensors
    if any(".lora_A." in name for name in tensors):
        return "adapters", convert_state_dict_to_kohya({f"unet.{name.removeprefix('unet.')}": value for name, value in tensors.items()})
    if some(compvis.UNET):
        return "compvis", tensors
    if tensors.keys() >= set(_SAE):
        raise _is_sae(path.parent)
    if tensors and all(name.endswith(_ERASER) and "transformer_blocks." in name for name in tensors):
        return "erasers", tensors
    if some(tuple(f"{network}." for network in NETWORKS)):
        return "weights", tensors
    for network, prefixes in (("unet", _UNET), ("text_encoder", _TEXT)):
        if some(prefixes):
            return "weights", {f"{network}.{name}": tensor for name, tensor in tensors.items()}
    raise BenchError(f"{path} holds no weights of a kind that is known ({_first(tensors)}): python -m bench show checkpoint names them.")


def _why(error: Exception) -> str:
    """In a line, without torch's advice to read what is not safe nevertheless."""
    if isinstance(error, pickle.UnpicklingError):
        asked = re.search(r"GLOBAL (\S+)", str(error))
        return f"it asks for {asked[1]}" if asked else "its pickle holds something else"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _first(names: Iterable[str]) -> str:
    first = next(iter(names), None)
    return "it is empty" if first is None else f"its first name is {first}"


def _is_sae(folder: Path) -> BenchError:
    return BenchError(f"{folder} is a sparse autoencoder, no checkpoint: --methods saeuron --set saeuron.sae=FOLDER uses it.")

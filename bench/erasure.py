"""Erasures to files and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from bench import packed
from bench.errors import BenchError
from bench.interfaces import Erasure, Weights
from bench.packed import Packed


def pack(erasure: Erasure) -> Packed:
    """The erasure ready to be saved."""
    tensors: dict[str, Tensor] = {}
    index: dict[str, Any] = {"notes": dict(erasure.notes), "activations": []}
    for name, part in (("text", erasure.text), ("guidance", erasure.guidance)):
        index[name] = _describe(part, name, tensors) if part is not None else None
    for number, edit in enumerate(erasure.activations):
        index["activations"].append(_describe(edit, f"activations.{number}", tensors))
    if erasure.weights is not None:
        tensors.update({f"weights.{key}": value for key, value in erasure.weights.values.items()})
    index["weights"] = erasure.weights is not None
    return Packed(index, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))


def load_erasure(folder: Path, parts: tuple[type, ...], device: torch.device) -> tuple[Erasure, str]:
    """What was saved, and the digest of its tensors; only the classes in `parts` are made. BenchError if it is damaged."""
    try:
        found = packed.read(folder)
        index, tensors = found.index, {key: value.to(device) for key, value in load(found.tensors).items()}
        kinds = {kind.__name__: kind for kind in parts}
        erasure = Erasure(
            text=_make(index["text"], "text", tensors, kinds),
            guidance=_make(index["guidance"], "guidance", tensors, kinds),
            activations=tuple(_make(edit, f"activations.{n}", tensors, kinds) for n, edit in enumerate(index["activations"])),
            weights=Weights(_under(tensors, "weights")) if index["weights"] else None,
            notes=index["notes"],
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:  # another OSError is no damage
        raise BenchError(f"The erasure in {folder} is damaged ({error}): delete the folder and run again.") from error
    return erasure, index["tensors"]


def _describe(part: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    tensors.update({f"{prefix}.{name}": value for name, value in values.items() if isinstance(value, Tensor)})
    return {"class": type(part).__name__, "fields": {name: v for name, v in values.items() if not isinstance(v, Tensor)}}


def _make(described: Mapping[str, Any] | None, prefix: str, tensors: Mapping[str, Tensor], kinds: Mapping[str, type]) -> Any:
    if described is None:
        return None
    if described["class"] not in kinds:
        own = described["class"]
        raise BenchError(f"The erasure has a part of the class {own}, which its method does not declare: parts = ({own}, …) in the method.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in described["fields"].items()}
    return kinds[described["class"]](**values, **_under(tensors, prefix))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}

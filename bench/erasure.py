"""A fitted erasure as a folder: `erasure.json` (parts and their JSON fields) and `tensors.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from bench.errors import BenchError
from bench.files import sha256_file, write_atomic
from bench.interfaces import Erasure, Weights

_TENSORS, _INDEX = "tensors.safetensors", "erasure.json"


def save_erasure(erasure: Erasure, folder: Path) -> None:
    """Write the folder; the index comes last, so that its existence means the whole is there."""
    tensors: dict[str, Tensor] = {}
    index: dict[str, Any] = {"notes": dict(erasure.notes), "activations": []}
    for name, part in (("text", erasure.text), ("guidance", erasure.guidance)):
        index[name] = _describe(part, name, tensors) if part is not None else None
    for number, edit in enumerate(erasure.activations):
        index["activations"].append(_describe(edit, f"activations.{number}", tensors))
    if erasure.weights is not None:
        tensors.update({f"weights.{key}": value for key, value in erasure.weights.values.items()})
    index["weights"] = erasure.weights is not None
    write_atomic(folder / _TENSORS, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
    index["tensors_sha256"] = sha256_file(folder / _TENSORS)
    write_atomic(folder / _INDEX, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())


def load_erasure(folder: Path, parts: tuple[type, ...], device: torch.device) -> Erasure:
    """Read a folder written by `save_erasure`; only the classes in `parts` are made. BenchError if it is damaged."""
    try:
        index = json.loads((folder / _INDEX).read_text())
        if index["tensors_sha256"] != sha256_file(folder / _TENSORS):
            raise ValueError(f"{_TENSORS} does not have the recorded digest")
        tensors = {key: value.to(device) for key, value in load((folder / _TENSORS).read_bytes()).items()}
        kinds = {kind.__name__: kind for kind in parts}
        return Erasure(
            text=_make(index["text"], "text", tensors, kinds),
            guidance=_make(index["guidance"], "guidance", tensors, kinds),
            activations=tuple(_make(edit, f"activations.{n}", tensors, kinds) for n, edit in enumerate(index["activations"])),
            weights=Weights(_under(tensors, "weights")) if index["weights"] else None,
            notes=index["notes"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"The erasure in {folder} is damaged ({error}): delete the folder and run again.") from error


def erasure_digest(folder: Path) -> str | None:
    """SHA-256 of a stored erasure's tensors; None where there is none that could be read."""
    try:
        return str(json.loads((folder / _INDEX).read_text())["tensors_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stored_bytes(folder: Path) -> int:
    """What the erasure needs on disk, in bytes."""
    return sum(file.stat().st_size for file in (folder / _TENSORS, folder / _INDEX))


def _describe(part: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    tensors.update({f"{prefix}.{name}": value for name, value in values.items() if isinstance(value, Tensor)})
    return {"class": type(part).__name__, "fields": {name: v for name, v in values.items() if not isinstance(v, Tensor)}}


def _make(described: Mapping[str, Any] | None, prefix: str, tensors: Mapping[str, Tensor], kinds: Mapping[str, type]) -> Any:
    if described is None:
        return None
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in described["fields"].items()}
    return kinds[described["class"]](**values, **_under(tensors, prefix))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}

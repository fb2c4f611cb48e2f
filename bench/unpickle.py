"""Tensors out of files that others wrote with Python's pickle, without running anything that such a file may ask for."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._utils
from torch import Tensor

from bench.errors import BenchError


def _nested(data: bytes) -> Any:
    """A storage that was pickled as torch.save writes it: read by the reader that knows tensors alone."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, as the pickles of old protocols spell them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _nested,
    ("_codecs", "encode"): _latin1,
}
"""All that a pickled tensor is rebuilt with."""


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no tensor")
        return _ALLOWED[module, name]


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote: tensors, containers, texts, numbers, numpy's among them. Raises what torch raises; runs nothing."""
    kinds = (type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64"))
    scalar = np.float64(0).__reduce__()[0]  # whichever of its names numpy has for it
    names: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, np.dtype, *kinds]):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a pickled dictionary. BenchError for anything else, before any of it has run."""
    try:
        with path.open("rb") as file:
            found = _TensorUnpickler(file).load()
        if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
            raise ValueError("it is no dictionary of tensors")
    except Exception as error:  # a damaged pickle may raise nearly anything
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(f"{path} does not hold tensors alone ({first}): it was not read further. Give another file.") from error
    return found

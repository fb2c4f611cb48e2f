"""A fitted erasure as files: `erasure.json` (parts and their JSON fields) and its tensors, named by their digest. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import CannotWriteError
from bench.files import sealed_json, unsealed, write_atomic

_INDEX = "erasure.json"


@dataclass(frozen=True)
class Packed:
    """An erasure ready to be saved."""

    index: Mapping[str, Any]
    """JSON."""
    tensors: bytes
    """safetensors."""

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors."""
        return hashlib.sha256(self.tensors).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the folder. The index comes last: where it is, all is there; of several writers' the first stays, and counts for all."""
        digest = self.digest
        write_atomic(_tensors(folder, digest), self.tensors)
        write_atomic(folder / _INDEX, sealed_json({**self.index, "tensors": digest}), replace=False)


def read(folder: Path) -> Packed:
    """What was saved. Raises OSError, ValueError or KeyError if it is not whole."""
    index = unsealed((folder / _INDEX).read_bytes())
    found = Packed(index, _tensors(folder, index["tensors"]).read_bytes())
    if found.digest != index["tensors"]:
        raise ValueError("its tensors do not have the digest that is recorded")
    return found


def stored_digest(folder: Path) -> str | None:
    """SHA-256 of the tensors as recorded; None where nothing is stored that could be read."""
    try:
        return str(unsealed((folder / _INDEX).read_bytes())["tensors"])
    except (OSError, ValueError, KeyError):
        return None


def exists(folder: Path) -> bool:
    """Whether an erasure was saved here, be it damaged since."""
    return (folder / _INDEX).exists()


def remove(folder: Path) -> None:
    """Make room for another: what is left of a folder without its index is nothing. CannotWriteError where that cannot be."""
    try:
        (folder / _INDEX).unlink(missing_ok=True)
    except OSError as error:
        raise CannotWriteError(f"{folder} cannot be removed ({error.strerror}): look to the folder's permissions.") from error


def _tensors(folder: Path, digest: str) -> Path:
    return folder / f"{digest[:16]}.safetensors"

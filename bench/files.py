"""Files that are either whole or absent, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import CannotWriteError


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def tree_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a folder, hidden ones left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.parts[-2:]))
    return sha256_text("".join(f"{path.relative_to(folder)} {sha256_file(path)}\n" for path in files))


_SEAL = re.compile(r'\{"sha256": "([0-9a-f]{64})",?')


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """An object as JSON with sorted keys, after a first line that holds the SHA-256 of the rest."""
    return seal(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def seal(text: str) -> bytes:
    """The text of a JSON object with the SHA-256 of all after its first brace put into its first line."""
    rest = text[1:]
    return f'{{"sha256": "{sha256_text(rest)}"{"" if rest.startswith("}") else ","}{rest}'.encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """What was sealed. Raises ValueError if anything in it has changed since."""
    text = data.decode()
    found = _SEAL.match(text)
    if found is None or sha256_text(text[found.end() :]) != found[1]:
        raise ValueError("it does not have the digest that its first line states")
    return dict(json.loads("{" + text[found.end() :]))


def write_atomic(path: Path, data: bytes, replace: bool = True) -> None:
    """Write under a temporary name in the same folder, fsync, rename, fsync the folder: a kill leaves the old file or the new.

    Without `replace`, a file that is there already stays: of several writers the first wins. Raises CannotWriteError where the
    folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            if replace:
                os.replace(name, path)
            else:
                _link_new(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise CannotWriteError(f"{path} cannot be written ({error.strerror or error}): choose another folder or free the space.") from error


def _link_new(name: str, path: Path) -> None:
    try:
        os.link(name, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links; two that write in the same moment may now both think they were first
        if not path.exists():
            os.replace(name, path)
            return
    os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Whether all files of a run are as they were written."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from bench.errors import BenchError
from bench.store import Store, whole
from bench.tables import leaderboard_of, write_tables


def damaged_units(store: Store, files: Iterable[Path]) -> Iterator[str]:
    """Those that have not the digest of their names; each is set aside, so that it is missing and made again."""
    for path in files:
        with suppress(FileNotFoundError):  # just replaced by another process
            if whole(path) is None:
                yield f"{path} is damaged: set aside as {store.set_aside(path)}; the run's command makes it again"


def other_damage(store: Store) -> list[str]:
    """Erasures, costs and records that cannot be read; tables and picture that their records do not make, byte for byte."""
    found = [problem for path in sorted(store.folder.glob("erasures/*/")) if (problem := _erasure(path))]
    found += [problem for path in sorted(store.folder.glob("cost/*.json")) if (problem := _json(store, path))]
    if not any(store.folder.glob("records/*.json")):
        return found
    with tempfile.TemporaryDirectory() as scratch:
        try:
            write_tables(leaderboard_of(store), store, Path(scratch))
        except BenchError as error:
            return [*found, str(error)]
        for path in sorted(Path(scratch).iterdir()):
            own = store.folder / path.name
            if not own.is_file() or own.read_bytes() != path.read_bytes():
                found.append(f"{own} and the records that it is made of differ: the run's command makes both again")
    return found


def temporary_files(store: Store) -> list[Path]:
    """What killed processes left, or running ones are writing."""
    return sorted(store.folder.rglob(".*.tmp"))


def _erasure(folder: Path) -> str | None:
    index = folder / "erasure.json"
    if not index.is_file():
        return None  # a kill came before its last file: it is fitted again
    try:
        digest = json.loads(index.read_text())["tensors_sha256"]
        if hashlib.sha256((folder / "tensors.safetensors").read_bytes()).hexdigest() == digest:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return f"{folder} is damaged: the run's command fits it again where it needs it"


def _json(store: Store, path: Path) -> str | None:
    try:
        store.read_json(str(path.relative_to(store.folder)), ())
    except BenchError as error:
        return str(error)
    return None

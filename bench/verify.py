"""Whether all files of a run are as they were written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import packed
from bench.errors import BenchError
from bench.store import Store, UnitFile
from bench.tables import differing

READERS = 8
"""Threads."""


def damaged_units(store: Store, files: Sequence[UnitFile], read: Callable[[], None] = lambda: None) -> list[str]:
    """Those that have not the digest of their names; each is set aside, so that it is missing and made again.

    `read()` is called after each. Several are read at once, as hashing leaves the interpreter free.
    """
    found = []
    with ThreadPoolExecutor(READERS) as pool:
        for file, is_whole in zip(files, pool.map(_is_whole, files), strict=True):
            if not is_whole:
                found.append(_set_aside(store, file))
            read()
    return found


def _set_aside(store: Store, file: UnitFile) -> str:
    try:
        return f"{file.path} is damaged: set aside as {store.set_aside(file.path)}; the run's command makes it again"
    except BenchError as error:
        return str(error)


def _is_whole(file: UnitFile) -> bool:
    try:
        return file.read() is not None
    except FileNotFoundError:
        return True  # just replaced by another process


def other_damage(store: Store) -> list[str]:
    """Erasures and JSON files that are not as they were written; tables and picture that their records do not make, byte for byte."""
    found = [problem for path in sorted(store.folder.glob("erasures/*/")) if (problem := _erasure(path))]
    for pattern in ("config.json", "plan.json", "cost/*.json", "failures/*.json"):
        found += [problem for path in sorted(store.folder.glob(pattern)) if (problem := _json(store, path))]
    found += _missing(store)
    if not any(store.folder.glob("records/*.json")):
        lost = (store.folder / "leaderboard.csv").exists()
        return [*found, f"{store.folder} has tables without records: the run's command makes both again"] if lost else found
    try:
        stale = differing([store.folder], store.folder)
    except BenchError as error:
        return [*found, str(error)]
    return found + [f"{path} and the records that it is made of differ: the run's command makes both again" for path in stale]


def _missing(store: Store) -> list[str]:
    """Units of the plan that a run with tables must have."""
    try:
        plan = store.read_json("plan.json", ["units"])
    except BenchError:
        return []  # told already
    if plan is None:
        return [f"{store.folder / 'plan.json'} is missing: the run's command writes it again"]
    lost = {entry["fit"] for entry in plan["units"]} & store.failures().keys()
    there = {file.unit for file in store.all_unit_files()}
    missing = {entry["unit"] for entry in plan["units"] if entry["fit"] not in lost} - there
    if not missing or not (store.folder / "leaderboard.csv").exists():
        return []
    return [f"{len(missing)} units of the plan are missing: the run's command makes them again"]


def temporary_files(store: Store) -> list[Path]:
    """What killed processes left, or running ones are writing: files cut off, and tensors that no erasure names."""
    return sorted([*store.folder.rglob(".*.tmp"), *(path for path in store.folder.glob("erasures/*/*.safetensors") if _unnamed(path))])


def _unnamed(tensors: Path) -> bool:
    """Whether a whole erasure, or one that was never finished, is not made of them; of a damaged one nobody knows."""
    digest = packed.stored_digest(tensors.parent)
    return digest[:16] != tensors.stem if digest else not packed.exists(tensors.parent)


def _erasure(folder: Path) -> str | None:
    if not packed.exists(folder):
        return None  # a kill came before its last file: it is fitted again
    try:
        packed.read(folder)
    except (OSError, ValueError, KeyError):
        return f"{folder} is damaged: the run's command fits it again where it needs it"
    return None


def _json(store: Store, path: Path) -> str | None:
    try:
        store.read_json(str(path.relative_to(store.folder)), ())
    except BenchError as error:
        return str(error)
    return None

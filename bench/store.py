"""The files of a run. A unit file is named by its identity and its own digest, so what exists and verifies is done.

<run>/config.json  plan.json  units/<xx>/<id>.<sha256>.parquet  erasures/<id>/  cost/  records/  leaderboard.*  grid.png

There are no locks and no status: any number of processes may write into one folder. `xx` are the first two digits of the id,
so that no folder grows too long to be looked through.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from bench.config import Resume
from bench.errors import BenchError
from bench.files import write_atomic
from bench.types import Record

_FOLDERS = ("units", "erasures", "cost", "records")
_FILES = ("config.json", "plan.json", "failures.json")
_CONFIG_KEYS = ("suite", "preset", "targets", "seeds", "steps", "batch_size", "numerics", "protocol")
# What may differ between commands that share a folder: methods and pictures kept. All else decides what is compared.
_FIXED = ("suite", "preset", "targets", "seeds", "steps", "batch_size", "scheduler", "fit_seed")


def _foreign(folder: Path) -> bool:
    """Whether it holds anything that a run, killed at any moment, would not have left."""
    known = {*_FOLDERS, *_FILES, "damaged"}
    return any(path.name not in known and not path.name.endswith(".tmp") for path in folder.iterdir())


def whole(path: Path) -> bytes | None:
    """What a unit file holds; None where that has not the digest of its name. FileNotFoundError where another process replaced it."""
    data = path.read_bytes()
    return data if hashlib.sha256(data).hexdigest() == path.name.split(".")[1] else None


class Store:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> Store:
        """Make the folder or continue it. BenchError if it holds something else or cannot be written."""
        if folder.exists() and (not folder.is_dir() or (not (folder / "plan.json").is_file() and _foreign(folder))):
            raise BenchError(f"{folder} exists and is not a run: choose another --out.")
        try:
            for name in _FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(f"{folder} cannot be written ({error.strerror}): choose another --out.") from error
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """An existing run. BenchError if the folder is not one."""
        if not (folder / "config.json").is_file():
            raise BenchError(f"{folder} is not a run (it has no config.json): give a folder that `python -m bench run` made.")
        return cls(folder)

    def check_same(self, config: Mapping[str, Any], resume: Resume) -> None:
        """BenchError where the folder is of another run, whose units would not be comparable with this one's, or is to stay as it is."""
        kept = self.read_json("config.json", ())
        if kept and resume == "never":
            raise BenchError(f"{self.folder} holds a run already: choose another --out, or another --resume.")
        if not kept and resume == "only-cache":
            raise BenchError(f"{self.folder} holds no run to make tables of: choose another --out, or another --resume.")
        for name in _FIXED if kept else ():
            if kept.get(name) != config[name]:
                raise BenchError(f"{self.folder} holds a run with other {name.replace('_', ' ')}: choose another --out.")

    def check_numerics(self, numerics: Mapping[str, Any], resume: Resume) -> None:
        """BenchError where what is stored was sampled with other numerics: none of it would be used, all sampled again."""
        kept = self.config().get("numerics", numerics)
        other = [f"{key} {kept.get(key)} there, {value} here" for key, value in numerics.items() if kept.get(key) != value]
        if other and resume != "always":
            raise BenchError(
                f"{self.folder} was sampled with other numerics ({'; '.join(other)}): give the options it was made with, choose"
                " another --out, or sample all again with --resume always."
            )

    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run, its numerics and protocol."""
        return dict(self.read_json("config.json", _CONFIG_KEYS) or {})

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """`name` relative to the run, whole or not at all."""
        write_atomic(self.folder / name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def read_json(self, name: str, keys: Iterable[str]) -> Any:
        """An object with these keys; None if there is no such file, BenchError if it is something else."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            lacking = [key for key in keys if key not in value] if isinstance(value, dict) else ["its object"]
            if lacking:
                raise ValueError(f"{lacking[0]} is missing")
        except ValueError as error:
            raise BenchError(f"{path} is damaged ({error}): delete it and give the run's command again.") from error
        return value

    def write_unit(self, unit: str, frame: pd.DataFrame) -> None:
        """Store one unit's outcomes, row order kept, in place of any earlier file of that identity."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, compression="zstd")
        data = buffer.getvalue()
        before = self.unit_files(unit)  # not after: two that write at once must not remove each other's
        path = self.folder / "units" / unit[:2] / f"{unit}.{hashlib.sha256(data).hexdigest()}.parquet"
        write_atomic(path, data)
        for other in before:
            if other != path:
                other.unlink(missing_ok=True)

    def read_unit(self, unit: str) -> pd.DataFrame | None:
        """The unit's outcomes; None where no file of that identity has the digest its name states."""
        for path in self.unit_files(unit):
            with suppress(FileNotFoundError):
                data = whole(path)
                if data is not None:
                    return pd.read_parquet(io.BytesIO(data))
        return None

    def unit_files(self, unit: str) -> list[Path]:
        """What there is under this identity: one file, but for a moment more where another process replaces it."""
        return sorted((self.folder / "units" / unit[:2]).glob(f"{unit}.*.parquet"))

    def all_unit_files(self) -> list[Path]:
        """Every unit file, of this plan or an earlier one."""
        return sorted((self.folder / "units").glob("*/*.parquet"))

    def set_aside(self, path: Path) -> Path:
        """Move a damaged file out of the way, to look at, if no other process has."""
        place = self.folder / "damaged" / path.name
        place.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            path.rename(place)
        return place

    def write_records(self, records: Iterable[Record]) -> None:
        """The records of this run, one file a method; those of methods that it no longer has go (their units stay)."""
        found = {"".join(c if c.isalnum() or c in "-_=.,+" else "_" for c in record.label): record for record in records}
        for name, record in found.items():
            write_atomic(self.folder / "records" / f"{name}.json", record.to_json().encode())
        for path in (self.folder / "records").glob("*.json"):
            if path.stem not in found:
                path.unlink()

    def records(self) -> list[Record]:
        """All records of the run, by label. BenchError if they are not all of one plan."""
        found = []
        for path in sorted((self.folder / "records").glob("*.json")):
            try:
                found.append(Record.from_json(path.read_text()))
            except (ValueError, KeyError, TypeError) as error:
                raise BenchError(f"{path} is not a record ({error}): delete it and give the run's command again.") from error
        if not found:
            raise BenchError(f"{self.folder} has no records yet: finish it with the command that began it.")
        if len({record.provenance.get("plan") for record in found}) > 1:
            raise BenchError(f"The records in {self.folder} are of different plans: finish the run with the command that began it last.")
        return sorted(found, key=lambda record: record.label)

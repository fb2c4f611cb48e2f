"""The files of a run. A unit file is named by its identity and its own digest, so what exists and verifies is done.

<run>/config.json  plan.json  units/<xx>/<id>.<erasure>.<pictures>.<sha256>.parquet
      erasures/<id>/  cost/  failures/  records/  attacks/  leaderboard.*  grid.png

There are no locks and no status: any number of processes may write into one folder. `xx` are the first two digits of the id,
so that no folder grows too long to be looked through. Names say what a unit was made of, so that a run is resumed by listing
folders; contents are held against their digest whenever they are read, at the latest when tables are made.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.config import IMAGES, Images, Resume
from bench.errors import BenchError, CannotWriteError
from bench.files import sealed_json, unsealed, write_atomic
from bench.types import Record

_DIGITS = 16
"""Of an erasure's digest, in names."""
FORMAT = 1
"""Of the folder as a whole; raised when files of it come to mean something else."""
_FOLDERS = ("units", "erasures", "cost", "failures", "records", "attacks")
_FILES = ("config.json", "plan.json")
_CONFIG_KEYS = ("suite", "preset", "targets", "seeds", "steps", "batch_size", "numerics", "protocol")
# What may differ between commands that share a folder: methods and pictures kept. All else decides what is compared.
_FIXED = ("suite", "preset", "targets", "seeds", "steps", "scheduler", "fit_seed", "sequential")


class Failure(NamedTuple):
    """Why there are no pictures of an erasure."""

    name: str
    """Method and target."""
    reason: str
    """One line."""
    traceback: str | None
    """Of what broke; None where a method cannot remove a target and says so."""


def _foreign(folder: Path) -> bool:
    """Whether it holds anything that a run, killed at any moment, would not have left."""
    known = {*_FOLDERS, *_FILES, "damaged"}
    return any(path.name not in known and not path.name.endswith(".tmp") for path in folder.iterdir())


class UnitFile(NamedTuple):
    """A unit's file, by its name."""

    path: Path
    unit: str
    erasure: str
    """The first digits of the erasure's digest."""
    images: Images
    """Which pictures it holds."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> UnitFile:
        """From a name that `write_unit` gave."""
        unit, erasure, images, sha256, _ = path.name.split(".")
        return cls(path, unit, erasure, images, sha256)  # type: ignore[arg-type]

    def serves(self, erasure: str | None, images: Images) -> bool:
        """Whether it is of this erasure (None: of any) and holds these pictures at least."""
        return (erasure is None or self.erasure == erasure[:_DIGITS]) and IMAGES.index(self.images) >= IMAGES.index(images)

    def read(self) -> bytes | None:
        """What it holds; None where that has not the digest of its name. FileNotFoundError where another process replaced it."""
        data = self.path.read_bytes()
        return data if hashlib.sha256(data).hexdigest() == self.sha256 else None


def _brief(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


class Store:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> Store:
        """Make the folder or continue it. BenchError if it holds something else or cannot be written."""
        known = any((folder / name).is_file() for name in _FILES)
        if folder.exists() and (not folder.is_dir() or (not known and _foreign(folder))):
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
        store = cls(folder)
        store.read_json("config.json", ())
        return store

    def check_same(self, config: Mapping[str, Any], resume: Resume) -> None:
        """BenchError where the folder is of another run, whose units would not be comparable with this one's, or is to stay as it is."""
        if self.folder.exists() and not self.folder.is_dir():
            raise BenchError(f"{self.folder} is not a folder: choose another --out.")
        kept = self.config()
        there = any((self.folder / name).is_file() for name in _FILES) or any((self.folder / "units").glob("*/*"))
        if there and resume == "never":
            raise BenchError(f"{self.folder} holds a run already: choose another --out, or another --resume.")
        if not kept and resume == "only-cache":
            raise BenchError(f"{self.folder} holds no run to make tables of: choose another --out, or another --resume.")
        for name in _FIXED if kept else ():
            if kept.get(name, config[name]) != config[name]:
                both = f"{_brief(kept.get(name))} there, {_brief(config[name])} here"
                raise BenchError(f"{self.folder} holds a run with other {name.replace('_', ' ')} ({both}): choose another --out.")

    def check_prepared(self, protocol: str, numerics: Mapping[str, Any], resume: Resume) -> None:
        """BenchError where what is stored is of another version of the protocol or was sampled with other numerics.

        None of it would be used, all sampled again.
        """
        if self.config().get("protocol", protocol) != protocol:
            raise BenchError(f"{self.folder} is of the protocol {self.config()['protocol']}, this is {protocol}: choose another --out.")
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

    def write_json(self, name: str, value: Mapping[str, Any], replace: bool = True) -> None:
        """`name` relative to the run, whole or not at all, with its digest; without `replace` what is there stays."""
        write_atomic(self.folder / name, sealed_json(value), replace)

    def read_json(self, name: str, keys: Iterable[str]) -> Any:
        """An object with these keys; None if there is no such file, BenchError if it is something else or was changed since."""
        path = self.folder / name
        try:
            value = unsealed(path.read_bytes())
            if value.get("format", FORMAT) > FORMAT:
                raise BenchError(f"{path} was made by a newer version of this program: update it, or choose another folder.")
            lacking = [key for key in keys if key not in value]
            if lacking:
                raise ValueError(f"{lacking[0]} is missing")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BenchError(f"{path} cannot be read ({error.strerror}): look to its permissions and its disk.") from error
        except ValueError as error:
            raise BenchError(f"{path} is damaged ({error}): delete it and give the run's command again.") from error
        return value

    def write_unit(self, unit: str, frame: pd.DataFrame, erasure: str, images: Images) -> None:
        """Store one unit's outcomes, row order kept, in place of any earlier file of that identity."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, compression="zstd")
        data = buffer.getvalue()
        before = self.unit_files(unit)  # not after: two that write at once must not remove each other's
        path = self.folder / "units" / unit[:2] / f"{unit}.{erasure[:_DIGITS]}.{images}.{hashlib.sha256(data).hexdigest()}.parquet"
        write_atomic(path, data)
        for other in before:
            if other.path != path:
                other.path.unlink(missing_ok=True)

    def read_unit(self, unit: str, columns: Sequence[str] | None = None, erasure: str | None = None) -> pd.DataFrame | None:
        """The unit's outcomes, of all or some columns; None where no file of that identity has the digest its name states.

        Of several files the one of this erasure, then the one with most pictures.
        """
        for file in sorted(self.unit_files(unit), key=lambda file: not file.serves(erasure, "none")):
            with suppress(FileNotFoundError):
                data = file.read()
                if data is not None:
                    return pd.read_parquet(io.BytesIO(data), columns=columns)
        return None

    def unit_files(self, unit: str) -> list[UnitFile]:
        """What there is under this identity, most pictures first: one file, but where another process replaces it or was killed at that."""
        found = [UnitFile.of(path) for path in (self.folder / "units" / unit[:2]).glob(f"{unit}.*.*.*.parquet")]
        return sorted(found, key=lambda file: (-IMAGES.index(file.images), file.path))

    def all_unit_files(self) -> list[UnitFile]:
        """Every unit file, of this plan or an earlier one."""
        return [UnitFile.of(path) for path in sorted((self.folder / "units").glob("*/*.*.*.*.parquet"))]

    def set_aside(self, path: Path) -> Path:
        """Move a damaged file out of the way, to look at, if no other process has. CannotWriteError where that cannot be."""
        place = self.folder / "damaged" / path.name
        try:
            place.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                path.rename(place)
        except OSError as error:
            raise CannotWriteError(f"{path} is damaged and cannot be set aside ({error.strerror}): move it away.") from error
        return place

    def remove(self, paths: Iterable[Path]) -> None:
        """Files that may not be there. CannotWriteError where that cannot be."""
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise CannotWriteError(f"{path} cannot be removed ({error.strerror}): look to the folder's permissions.") from error

    def write_failure(self, fit: str, failure: Failure) -> None:
        """Keep what broke, by the id of its fit."""
        self.write_json(f"failures/{fit}.json", failure._asdict())

    def forget_failures(self, fits: Iterable[str]) -> None:
        """Of fits that are tried again."""
        self.remove(self.folder / "failures" / f"{fit}.json" for fit in fits)

    def failures(self) -> dict[str, Failure]:
        """What broke and was not tried again, by the id of its fit."""
        paths = sorted((self.folder / "failures").glob("*.json"))
        read = {path.stem: self.read_json(f"failures/{path.name}", Failure._fields) for path in paths}
        return {fit: Failure(**{key: value[key] for key in Failure._fields}) for fit, value in read.items() if value is not None}

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
        found = read_records(self.folder)
        if not found:
            raise BenchError(f"{self.folder} has no records yet: finish it with the command that began it.")
        if len({record.provenance.get("plan") for record in found}) > 1:
            raise BenchError(f"The records in {self.folder} are of different plans: finish the run with the command that began it last.")
        return found


def read_records(folder: Path) -> list[Record]:
    """The records below a folder, by label. BenchError for one that is none."""
    found: list[Record] = []
    for path in sorted((folder / "records").glob("*.json")):
        try:
            found.append(Record.from_json(path.read_bytes()))
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} is not a record ({error}): restore it, or delete it and give the run's command again.") from error
    return sorted(found, key=lambda record: record.label)

"""The files of a run. A unit file is named by its identity and its own digest, so what exists and verifies is done.

<run>/config.json  plan.json  units/<id>.<sha256>.parquet  erasures/<id>/  cost/  records/  leaderboard.*  grid.png
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import BenchError
from bench.files import write_atomic
from bench.types import Record

_FOLDERS = ("units", "erasures", "cost", "records")


def _foreign(folder: Path) -> bool:
    """Whether it holds anything that a run, killed as it began, would not have left."""
    return any(path.name not in _FOLDERS for path in folder.iterdir())


class Store:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> Store:
        """Make the folder or continue it. BenchError if it holds something else or cannot be written."""
        if folder.exists() and (not folder.is_dir() or (not (folder / "config.json").is_file() and _foreign(folder))):
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

    def write_json(self, name: str, value: Any) -> None:
        """`name` relative to the run, whole or not at all."""
        write_atomic(self.folder / name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """None if there is no such file."""
        path = self.folder / name
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:
            raise BenchError(f"{path} is damaged ({error}): delete it and run again.") from error

    def write_unit(self, unit: str, frame: pd.DataFrame) -> None:
        """Store one unit's outcomes, row order kept."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, compression="zstd")
        data = buffer.getvalue()
        write_atomic(self.folder / "units" / f"{unit}.{hashlib.sha256(data).hexdigest()}.parquet", data)

    def read_unit(self, unit: str) -> pd.DataFrame | None:
        """The unit's outcomes; None where no file of that identity has the digest its name states."""
        for path in sorted((self.folder / "units").glob(f"{unit}.*.parquet")):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == path.name.split(".")[1]:
                return pd.read_parquet(io.BytesIO(data))
        return None

    def done(self, units: Iterable[str]) -> set[str]:
        """Those of the units that are whole."""
        return {unit for unit in units if self.read_unit(unit) is not None}

    def write_records(self, records: Iterable[Record]) -> None:
        """The records of this run, one file a method; those of methods that it no longer has go (their units stay)."""
        found = {"".join(c if c.isalnum() or c in "-_=.,+" else "_" for c in record.label): record for record in records}
        for name, record in found.items():
            write_atomic(self.folder / "records" / f"{name}.json", record.to_json().encode())
        for path in (self.folder / "records").glob("*.json"):
            if path.stem not in found:
                path.unlink()

    def records(self) -> list[Record]:
        """All records of the run, by label."""
        found = []
        for path in sorted((self.folder / "records").glob("*.json")):
            try:
                found.append(Record.from_json(path.read_text()))
            except (ValueError, KeyError, TypeError) as error:
                raise BenchError(f"{path} is not a record ({error}): delete it and run again.") from error
        if not found:
            raise BenchError(f"{self.folder} has no records yet: finish it with `python -m bench run --out {self.folder}`.")
        return sorted(found, key=lambda record: record.label)

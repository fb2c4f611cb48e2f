"""What is left of a run that was stopped, broke or was damaged, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_bundles import CELLS, Told, scorer, unit

from bench.config import Shard
from bench.diffusion.model import DiffusionModel
from bench.engine import local
from bench.engine.stopping import Stopped, stopping
from bench.errors import BenchError, CannotWriteError
from bench.interfaces import Erasure
from bench.plan import BASE, Unit
from bench.progress import progress_of
from bench.scoring import Scorer
from bench.sources import source_digest
from bench.store import Store
from bench.verify import damaged_units, other_damage, temporary_files

__all__ = ["scorer"]  # a fixture
FRAME = pd.DataFrame({"a": [1, 2]})


class Scripted:
    """A worker that does as told, in place of sampling."""

    def __init__(self, *breaks: tuple[set[str], int]) -> None:
        """Each of `breaks`: as long as one of these units is in a bundle, so many attempts fail."""
        self.breaks = [[ids, times] for ids, times in breaks]
        self.written: list[str] = []
        self.failed: dict[str, str] = {}
        self.warnings: list[str] = []
        self.stopped = False

    def stop(self) -> bool:
        return self.stopped

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        return [unit for unit in units if unit.id not in self.written]

    def execute(self, units: Sequence[Unit]) -> None:
        for entry in self.breaks:
            ids, times = entry
            if times and ids & {unit.id for unit in units}:
                entry[1] = times - 1
                raise ZeroDivisionError("by\nnought")
        self.written += [unit.id for unit in units]


UNITS = [unit(name, target, CELLS) for name, target in ((BASE, None), ("a", "object:fish"), ("b", "style:neon"))]


def run(worker: Any, bundles: Sequence[Sequence[Unit]]) -> dict[str, str]:
    return local.execute(worker, bundles)


def test_what_breaks_for_a_moment_is_tried_again() -> None:
    worker = Scripted(({"a-unit"}, 2))
    assert run(worker, [UNITS]) == {}
    assert sorted(worker.written) == ["a-unit", "b-unit", "none-unit"]
    assert worker.warnings == ["ZeroDivisionError: by nought: trying again"] * 2
    assert not worker.failed


def test_what_always_breaks_is_left_out_alone() -> None:
    worker = Scripted(({"a-unit"}, 100))
    broken = run(worker, [UNITS[:2], UNITS[2:]])
    assert worker.written == ["none-unit", "b-unit"]
    assert list(broken) == ["a on object:fish"]
    assert "Traceback" in broken["a on object:fish"]
    assert worker.failed == {"a": "broke 3 times (ZeroDivisionError: by nought)"}


def test_a_full_disk_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(units: Sequence[Unit]) -> None:
        raise CannotWriteError("no space")

    worker = Scripted()
    monkeypatch.setattr(worker, "execute", full)
    with pytest.raises(CannotWriteError, match="no space"):
        run(worker, [UNITS])


def test_a_stop_ends_before_a_bundle_or_within_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Scripted()
    worker.stopped = True
    run(worker, [UNITS[:1], UNITS[1:]])
    assert not worker.written

    def fitting(units: Sequence[Unit]) -> None:
        raise Stopped

    monkeypatch.setattr(worker, "execute", fitting)
    assert run(worker, [UNITS]) == {}


def test_a_stopped_bundle_leaves_whole_units_and_is_continued(tmp_path: Path, model: DiffusionModel, scorer: Scorer) -> None:
    erasures = {name: Erasure() for name in (BASE, "a", "b")}
    whole = Told(tmp_path / "whole", model, scorer, erasures, share=False)
    whole.run(UNITS)
    part = Told(tmp_path / "part", model, scorer, erasures, share=False)
    part.worker.__dict__["stop"] = lambda: part.pictures >= 6
    part.run(UNITS)
    assert 0 < len(part.files()) < 3
    assert part.files().items() < whole.files().items()
    part.worker.__dict__["stop"] = lambda: False
    left = part.worker.left(UNITS)
    assert len(left) == 3 - len(part.files())
    part.run(left)
    assert part.files() == whole.files()


def test_everything_again_replaces_nothing_by_other_bytes(tmp_path: Path, model: DiffusionModel, scorer: Scorer) -> None:
    told = Told(tmp_path, model, scorer, {BASE: Erasure()})
    told.run(UNITS[:1])
    before = told.files()
    told.worker.__dict__["again"] = True
    told.worker.written.clear()
    assert told.worker.left(UNITS[:1]) == UNITS[:1]
    told.run(UNITS[:1])
    assert told.files() == before
    assert told.worker.left(UNITS[:1]) == [], "once is enough"


def test_signals_ask_and_the_second_ends() -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with stopping(told.append) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert "once more stops at once" in told[0]
    assert signal.getsignal(signal.SIGTERM) == before
    code = (
        "import os, signal\nfrom bench.engine.stopping import stopping\n"
        "with stopping(print):\n    os.kill(os.getpid(), signal.SIGTERM)\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('still here')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == -signal.SIGTERM
    assert "still here" not in found.stdout


def store_of(folder: Path, units: Sequence[Unit]) -> Store:
    store = Store.create(folder)
    entries = [{"unit": u.id, "fit": u.fit.id, "method": u.fit.spec.label, "target": "", "pictures": len(u.requests)} for u in units]
    store.write_json("plan.json", {"units": entries})
    store.write_json("config.json", {})
    return store


def test_status_counts_and_foretells(tmp_path: Path) -> None:
    store = store_of(tmp_path, UNITS)
    assert progress_of(store).total.units_done == 0
    assert progress_of(store).sentence() == "12 pictures are left."
    for number, one in enumerate(UNITS[:2]):
        store.write_unit(one.id, FRAME)
        os.utime(store.unit_files(one.id)[0], (1000 + 2 * number, 1000 + 2 * number))
    store.write_unit("older", FRAME)
    store.write_json("failures.json", {"b on style:neon": "Traceback\nValueError: no\n"})
    found = progress_of(store)
    assert [(row.label, row.units_done, row.units) for row in found.methods] == [(BASE, 1, 1), ("a", 1, 1), ("b", 0, 1)]
    assert (found.total.pictures_done, found.total.pictures) == (8, 12)
    assert found.pictures_a_second == 2.0
    assert found.broken == {"b on style:neon": "ValueError: no"}
    assert "about a minute" in found.sentence()
    for one in UNITS[:2]:  # a clock that stood still
        os.utime(store.unit_files(one.id)[0], (1000, 1000))
    assert progress_of(store).pictures_a_second is None


def test_damage_is_found_and_set_aside(tmp_path: Path) -> None:
    store = store_of(tmp_path, UNITS)
    for one in UNITS:
        store.write_unit(one.id, FRAME)
    whole = store.unit_files("a-unit")[0].read_bytes()
    for damage in (whole[:-1], whole[: len(whole) // 2], b"", bytes([whole[0] ^ 1]) + whole[1:], whole[:40] + b"x" + whole[41:]):
        store.write_unit("a-unit", FRAME)
        path = store.unit_files("a-unit")[0]
        path.write_bytes(damage)
        assert store.read_unit("a-unit") is None
        found = list(damaged_units(store, store.all_unit_files()))
        assert len(found) == 1
        assert path.name in found[0]
        assert not store.unit_files("a-unit"), "missing now, so that it is made again"
    assert len(store.all_unit_files()) == 2
    (tmp_path / "erasures" / "x").mkdir()
    (tmp_path / "erasures" / "x" / "erasure.json").write_text('{"tensors_sha256": "no"}')
    (tmp_path / "cost" / "fit-x.json").write_text("{")
    assert [("erasures" in text, "cost" in text) for text in other_damage(store)] == [(True, False), (False, True)]
    (tmp_path / "units" / ".x.parquet.y.tmp").write_text("cut off")
    assert len(temporary_files(store)) == 1


def test_writers_of_one_unit_leave_one_whole_file(tmp_path: Path) -> None:
    one, two = Store.create(tmp_path), Store.create(tmp_path)
    one.write_unit("abc", FRAME)
    two.write_unit("abc", FRAME)
    assert len(one.all_unit_files()) == 1
    two.write_unit("abc", FRAME.assign(a=3))
    assert len(one.all_unit_files()) == 1
    (tmp_path / ".config.json.x.tmp").write_text("another process is writing this")
    Store.create(tmp_path)
    assert (tmp_path / ".config.json.x.tmp").exists()


def test_shards_are_all_bundles_once() -> None:
    things = list(range(11))
    parts = [Shard(number, 3).own(things) for number in (1, 2, 3)]
    assert sorted(thing for part in parts for thing in part) == things
    assert Shard.parse("2/3") == Shard(2, 3)
    for text in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(BenchError, match="form i/n"):
            Shard.parse(text)


def test_another_numerics_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path, [])
    store.write_json("config.json", dict.fromkeys(("suite", "preset", "targets", "seeds", "steps", "batch_size", "protocol")) |
                     {"numerics": {"dtype": "float32", "slots": 32}})  # fmt: skip
    store.check_numerics({"dtype": "float32", "slots": 32}, "missing")
    with pytest.raises(BenchError, match="dtype float32 there, bfloat16 here"):
        store.check_numerics({"dtype": "bfloat16", "slots": 32}, "missing")
    store.check_numerics({"dtype": "bfloat16", "slots": 32}, "always")
    Store(tmp_path / "nothing").check_numerics({"dtype": "float32"}, "missing")


def test_a_source_digest_follows_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "plugged"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shared.py").write_text("RATE = 1\n")
    (package / "method.py").write_text("from plugged.shared import RATE\nimport json\nMETHOD = RATE\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = source_digest("plugged.method:METHOD")
    (package / "shared.py").write_text("# a comment\nRATE   =   1\n")
    assert source_digest("plugged.method:METHOD") == before
    (package / "shared.py").write_text("RATE = 2\n")
    assert source_digest("plugged.method") != before
    assert source_digest("methods.saeuron") != source_digest("methods.saeuron_detect")

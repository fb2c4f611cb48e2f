"""What is left of a run that was stopped, broke or was damaged, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from test_bundles import CARD, CELLS, Told, scorer, unit

from bench.config import Shard
from bench.diffusion.model import DiffusionModel
from bench.engine import persist
from bench.engine.stopping import Stopped, stopping
from bench.errors import BenchError, CannotWriteError, DeviceLostError
from bench.interfaces import Erasure
from bench.plan import BASE, Fit, Unit
from bench.progress import progress_of
from bench.scoring import Scorer
from bench.sources import source_digest
from bench.store import Failure, Store
from bench.types import Record
from bench.verify import damaged_units, other_damage, temporary_files

__all__ = ["scorer"]  # a fixture
FRAME = pd.DataFrame({"a": [1, 2]})


class Scripted:
    """A worker that does as told, in place of sampling."""

    def __init__(self, *breaks: tuple[set[str], int]) -> None:
        """Each of `breaks`: as long as one of these units is in a bundle, so many attempts fail."""
        self.breaks = [[ids, times] for ids, times in breaks]
        self.written: list[str] = []
        self.failed: dict[str, Failure] = {}
        self.warnings: list[str] = []
        self.stopped = False

    def stop(self) -> bool:
        return self.stopped

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        return [unit for unit in units if unit.id not in self.written]

    def fail(self, fit: Fit, reason: str, traceback: str | None = None) -> None:
        self.failed[fit.id] = Failure(fit.name, reason, traceback)

    def check_device(self, what: str) -> None:
        pass

    def execute(self, units: Sequence[Unit]) -> None:
        for entry in self.breaks:
            ids, times = entry
            if times and ids & {unit.id for unit in units}:
                entry[1] = times - 1
                raise ZeroDivisionError("by\nnought")
        self.written += [unit.id for unit in units]


UNITS = [unit(name, target, CELLS) for name, target in ((BASE, None), ("a", "object:fish"), ("b", "style:neon"))]


def run(worker: Any, *bundles: Sequence[Unit]) -> None:
    for bundle in bundles:
        persist.sample(worker, bundle)


def test_what_breaks_for_a_moment_is_tried_again() -> None:
    worker = Scripted(({"a-unit"}, 2))
    run(worker, UNITS)
    assert sorted(worker.written) == ["a-unit", "b-unit", "none-unit"]
    assert worker.warnings == ["ZeroDivisionError: by nought: trying again"] * 2
    assert not worker.failed


def test_what_always_breaks_is_left_out_alone() -> None:
    worker = Scripted(({"a-unit"}, 100))
    run(worker, UNITS[:2], UNITS[2:])
    assert worker.written == ["none-unit", "b-unit"]
    assert list(worker.failed) == ["a"]
    assert worker.failed["a"][:2] == ("a on object:fish", "broke 3 times (ZeroDivisionError: by nought)")
    assert "Traceback" in str(worker.failed["a"].traceback)


def test_a_fit_that_breaks_is_tried_again_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Any = Scripted()
    tries = []

    def ready(fit: Fit) -> None:
        tries.append(fit)
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(worker, "ready", ready, raising=False)
    persist.fit(worker, UNITS[1].fit)
    assert len(tries) == 3
    assert worker.failed["a"].reason == "broke 3 times (ZeroDivisionError: by nought)"
    assert worker.warnings[0] == "a on object:fish: ZeroDivisionError: by nought: trying again"


def test_a_full_disk_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(units: Sequence[Unit]) -> None:
        raise CannotWriteError("no space")

    worker = Scripted()
    monkeypatch.setattr(worker, "execute", full)
    with pytest.raises(CannotWriteError, match="no space"):
        run(worker, UNITS)
    lost: Any = Scripted(({"a-unit"}, 1))
    monkeypatch.setattr(lost, "check_device", lambda what: (_ for _ in ()).throw(DeviceLostError(what)))
    with pytest.raises(DeviceLostError, match="ZeroDivisionError: by nought"):
        run(lost, UNITS)


def test_an_attack_that_does_not_fit_in_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(worker: Any, bundle: Sequence[Any]) -> None:
        raise torch.OutOfMemoryError("no more")

    worker: Any = Scripted()
    monkeypatch.setattr(persist.assault, "attack", hungry)
    monkeypatch.setattr(worker, "fail_as", worker.failed.__setitem__, raising=False)
    own = SimpleNamespace(id="u", requests=CELLS, fit=UNITS[1].fit, attack=SimpleNamespace(label="unlearndiffatk"))
    persist.attack(worker, [own])  # type: ignore[list-item]
    reason = f"memory ran out with {len(CELLS)} goals at once: --batch-size N attacks at most 2 N together"
    assert worker.failed["u"].reason == reason
    assert worker.warnings == [f"unlearndiffatk on a is left out: {reason}"], "once: it would run out again"


def test_a_stop_ends_before_a_bundle_or_within_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Scripted()
    worker.stopped = True
    with pytest.raises(Stopped):
        run(worker, UNITS)
    assert not worker.written

    def fitting(units: Sequence[Unit]) -> None:
        raise Stopped

    worker.stopped = False
    monkeypatch.setattr(worker, "execute", fitting)
    with pytest.raises(Stopped):
        run(worker, UNITS)


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


def test_signals_ask_and_the_second_ends(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert "once more stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    code = (
        "import os, signal\nfrom bench.engine.stopping import stopping\n"
        "with stopping():\n    os.kill(os.getpid(), signal.SIGTERM)\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('still here')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == -signal.SIGTERM
    assert "still here" not in found.stdout


def store_of(folder: Path, units: Sequence[Unit]) -> Store:
    store = Store.create(folder)
    entries = [
        {"unit": u.id, "fit": u.fit.id, "method": u.fit.spec.label, "target": "", "pictures": len(u.requests), "bundle": index}
        for index, u in enumerate(units)
    ]
    store.write_json("plan.json", {"units": entries, "plan": "of all"})
    store.write_json("config.json", {})
    return store


def test_status_counts_and_foretells(tmp_path: Path) -> None:
    store = store_of(tmp_path, UNITS)
    assert progress_of(store).total.units_done == 0
    assert progress_of(store).sentence() == "12 pictures are left. Next: sampling none."
    for number, one in enumerate(UNITS[:2]):
        store.write_unit(one.id, FRAME, "", "all")
        os.utime(store.unit_files(one.id)[0].path, (1000 + 2 * number, 1000 + 2 * number))
    store.write_unit("older", FRAME, "", "all")
    found = progress_of(store)
    assert [(row.label, row.units_done, row.units) for row in found.methods] == [(BASE, 1, 1), ("a", 1, 1), ("b", 0, 1)]
    assert (found.total.pictures_done, found.total.pictures) == (8, 12)
    assert found.pictures_a_second == 2.0
    assert "4 pictures are left: about a minute" in found.sentence()
    for clocks in ((1000, 1000), (1002, 1000)):  # one that stood still; one that went back is only another order
        for one, clock in zip(UNITS, clocks, strict=False):
            os.utime(store.unit_files(one.id)[0].path, (clock, clock))
        assert progress_of(store).pictures_a_second == (None if clocks[0] == clocks[1] else 2.0)
    store.write_failure("b", Failure("b on style:neon", "broke", "Traceback"))
    found = progress_of(store)
    assert found.failed == {"b on style:neon": "broke"}
    assert [row.failed for row in found.methods] == [0, 0, 4]
    assert found.sentence() == "All is sampled; the run's command makes the tables."
    (tmp_path / "leaderboard.csv").write_text("")
    record = Record("a", "a", 1, {}, CARD, "p", {}, {}, provenance={"plan": "another"})
    for plan, words in (("another", "All is sampled"), ("of all", "Complete.")):
        store.write_records([replace(record, provenance={"plan": plan})])
        assert progress_of(store).sentence().startswith(words)


def test_damage_is_found_and_set_aside(tmp_path: Path) -> None:
    store = store_of(tmp_path, UNITS)
    for one in UNITS:
        store.write_unit(one.id, FRAME, "", "all")
    whole = store.unit_files("a-unit")[0].path.read_bytes()
    for damage in (whole[:-1], whole[: len(whole) // 2], b"", bytes([whole[0] ^ 1]) + whole[1:], whole[:40] + b"x" + whole[41:]):
        store.write_unit("a-unit", FRAME, "", "all")
        path = store.unit_files("a-unit")[0].path
        path.write_bytes(damage)
        assert store.read_unit("a-unit") is None
        found = list(damaged_units(store, store.all_unit_files()))
        assert len(found) == 1
        assert path.name in found[0]
        assert not store.unit_files("a-unit"), "missing now, so that it is made again"
    assert len(store.all_unit_files()) == 2
    (tmp_path / "erasures" / "x").mkdir()
    (tmp_path / "erasures" / "x" / "erasure.json").write_text('{"tensors": "no"}')
    store.write_json("cost/fit-x.json", {"seconds": 12})
    for name in ("cost/fit-x.json", "plan.json"):
        path = tmp_path / name
        path.write_text(path.read_text().replace("1", "7", 1) if name != "plan.json" else path.read_text().replace("of all", "of ale"))
    assert [[word in text for word in ("erasures", "plan", "cost")] for text in other_damage(store)] == [
        [True, False, False], [False, True, False], [False, False, True]
    ]  # fmt: skip
    (tmp_path / "units" / ".x.parquet.y.tmp").write_text("cut off")
    assert len(temporary_files(store)) == 1


def test_a_unit_cut_off_anywhere_is_not_done(tmp_path: Path) -> None:
    store = store_of(tmp_path, UNITS)
    store.write_unit("abc", pd.DataFrame({"picture": [os.urandom(1024) for _ in range(64)]}), "", "all")
    path = store.unit_files("abc")[0].path
    whole = path.read_bytes()
    assert len(whole) > 64 * 1024
    for length in range(0, len(whole), 4096):
        path.write_bytes(whole[:length])
        assert store.read_unit("abc") is None
    path.write_bytes(whole)
    assert store.read_unit("abc") is not None


def test_writers_of_one_unit_leave_one_whole_file(tmp_path: Path) -> None:
    one, two = Store.create(tmp_path), Store.create(tmp_path)
    one.write_unit("abc", FRAME, "", "all")
    two.write_unit("abc", FRAME, "", "all")
    assert len(one.all_unit_files()) == 1
    two.write_unit("abc", FRAME.assign(a=3), "", "all")
    assert len(one.all_unit_files()) == 1
    (tmp_path / ".config.json.x.tmp").write_text("another process is writing this")
    Store.create(tmp_path)
    assert (tmp_path / ".config.json.x.tmp").exists()


def test_shards_are_all_bundles_once() -> None:
    things = list(range(11))
    parts = [Shard(number, 3).own(things) for number in (1, 2, 3)]
    assert [thing for part in parts for thing in part] == things
    assert {len(part) for part in parts} == {3, 4}
    assert Shard.parse("2/3") == Shard(2, 3)
    for text in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(BenchError, match="form i/n"):
            Shard.parse(text)


def test_another_numerics_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path, [])
    store.write_json("config.json", dict.fromkeys(("suite", "preset", "targets", "seeds", "steps", "batch_size", "protocol")) |
                     {"protocol": "p", "numerics": {"dtype": "float32", "slots": 32}})  # fmt: skip
    store.check_prepared("p", {"dtype": "float32", "slots": 32}, "missing")
    with pytest.raises(BenchError, match="dtype float32 there, bfloat16 here"):
        store.check_prepared("p", {"dtype": "bfloat16", "slots": 32}, "missing")
    store.check_prepared("p", {"dtype": "bfloat16", "slots": 32}, "always")
    with pytest.raises(BenchError, match="is of the protocol p, this is p2"):
        store.check_prepared("p2", {"dtype": "float32", "slots": 32}, "always")
    Store(tmp_path / "nothing").check_prepared("p", {"dtype": "float32"}, "missing")


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
    for line in ("from .shared import RATE", "from . import shared", "from plugged import shared", "import plugged.shared"):
        (package / "method.py").write_text(line)
        (package / "shared.py").write_text("RATE = 1\n")
        before = source_digest("plugged.method")
        (package / "shared.py").write_text("RATE = 2\n")
        assert source_digest("plugged.method") != before, line
    assert source_digest("methods.saeuron") != source_digest("methods.saeuron_detect")

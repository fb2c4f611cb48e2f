"""What a long run tells while it works: lines in a log, and the time left as soon as anything is there."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from bench import cli_progress
from bench.cli_progress import LINE_EVERY, Bar
from bench.files import write_atomic
from bench.progress import progress_of
from bench.store import Store


def test_a_log_gets_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(cli_progress.time, "monotonic", lambda: clock[0])
    text = io.StringIO()
    with Progress(console=Console(file=text, force_terminal=False, width=200), transient=True, get_time=lambda: clock[0]) as progress:
        bar = Bar(progress)
        bar.total(100, 0)
        bar.units(3, 8, 1)
        for k in range(8):
            clock[0] += LINE_EVERY / 4
            bar.say(f"saeuron, object:fish, {k}")
            bar.advance(5)
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    assert len(lines) == 2
    assert lines[1].startswith("35 of 100 pictures, 3 of 8 units, 1 failed, ")
    assert "pictures/s" in lines[1]
    assert "left: saeuron, object:fish, 7" in lines[1]


def test_a_terminal_gets_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(cli_progress.time, "monotonic", lambda: clock[0])
    text = io.StringIO()
    bar = Bar(Progress(console=Console(file=text, force_terminal=True), transient=True))
    bar.total(100, 0)
    clock[0] = 10 * LINE_EVERY
    bar.advance(50)
    assert text.getvalue() == ""


def test_time_left_is_told_from_the_first_unit_on(tmp_path: Path) -> None:
    units = [{"unit": f"{k:016x}", "fit": "f", "method": "m", "target": "style:a", "pictures": 10, "bundle": 0} for k in range(4)]
    store = Store(tmp_path)
    store.write_json("plan.json", {"plan": "p", "units": units})
    plan = tmp_path / "plan.json"
    os.utime(plan, (1000, 1000))
    assert progress_of(store).sentence() == "40 pictures are left. Next: fitting m on style:a."
    write_atomic(tmp_path / "erasures" / "f" / "erasure.json", b"{}")
    assert progress_of(store).sentence() == "40 pictures are left. Next: sampling m on style:a."
    store.write_json("plan.json", {"plan": "p", "units": [{**unit, "attack": "mma"} for unit in units]})
    assert progress_of(store).sentence() == "40 pictures are left. Next: attacking m on style:a with mma."
    os.utime(plan, (1000, 1000))
    assert progress_of(store).pictures_a_second is None
    there = tmp_path / "units" / "00" / f"{units[0]['unit']}.{'0' * 16}.all.{'0' * 64}.parquet"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"")
    os.utime(there, (1005, 1005))
    found = progress_of(store)
    assert found.total.pictures_done == 10
    assert found.pictures_a_second == pytest.approx(2.0)
    assert "30 pictures are left: about" in found.sentence()

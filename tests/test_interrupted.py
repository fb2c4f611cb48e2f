"""Runs that are stopped, killed, starved or broken, and what the same command makes of them. In this process, the model loaded once."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from commands import bench, contents

from bench import cost, files, session
from bench.engine.worker import Worker
from bench.plan import Unit
from bench.scoring import Scorer
from bench.suites.minicanvas import SUITE

RUN = (
    "run", "--preset", "smoke", "--batch-size", "4", "--dtype", "float32", "--compile", "no", "--methods", "uce,esd", "--set",
    "esd.iterations=2", "--concepts", "neon,fish", "--set", "esd.trajectories=2", "--out", "run",
)  # fmt: skip
UNITS = "units/*/*.parquet"
TABLES = ("records/*.json", "leaderboard.*", "*.csv", "citations.bib", "grid.png")


@pytest.fixture(scope="module", autouse=True)
def _loaded_once() -> Iterator[None]:
    """And with one thread, as workers that share two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "load_model", functools.cache(session.load_model))
        patch.setattr(Scorer, "load", functools.cache(Scorer.load))
        pictures = type(SUITE).reference_pictures
        patch.setattr(type(SUITE), "reference_pictures", functools.cache(lambda suite: list(pictures(suite))))
        patch.setattr(
            cost, "measure", lambda sampler, erasures, requests, say: {fit: dict.fromkeys(cost.SAMPLING_COST, 1.0) for fit in erasures}
        )
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    found = bench(*RUN, cwd=folder)
    assert found.returncode == 0, found.stderr
    return folder / "run"


def same(folder: Path, whole: Path) -> None:
    """Units at once, tables at equal costs, as time is another in every run."""
    assert contents(folder, UNITS) == contents(whole, UNITS)
    shutil.rmtree(folder / "cost")
    shutil.copytree(whole / "cost", folder / "cost")
    assert bench(*RUN, "--resume", "only-cache", cwd=folder.parent).returncode == 0
    assert contents(folder, *TABLES) == contents(whole, *TABLES)


class Killed(BaseException):
    """Nothing that the code could catch."""


def test_kills_in_the_middle_of_writes(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves what was renamed, and a temporary file cut off. Each run writes config and plan first."""
    write, left, reached = files.os.fsync, [0], []

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        left[0] -= name.endswith(".tmp")
        if not left[0]:
            Path(name).with_name(".cut off.tmp").write_text("cut o")
            reached.append("/".join(Path(name).parent.relative_to(tmp_path / "run").parts[:1]))
            raise Killed
        write(handle)

    for instant in (5, 6, 16, 3, 7, 5, 7):
        left[0] = instant
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", fsync)
            with pytest.raises(Killed):
                bench(*RUN, cwd=tmp_path)
    assert bench(*RUN, cwd=tmp_path).returncode == 0
    assert reached == ["erasures", "cost", "units", "units", "cost", "records", ""]
    same(tmp_path / "run", whole)
    assert bench("verify", "run", "--clean", cwd=tmp_path).returncode == 0
    assert not list(tmp_path.rglob("*.tmp"))


def _after_units(count: int, patch: pytest.MonkeyPatch, then: Any) -> None:
    """Do something when so many units are written."""
    write, left = Worker._write, [count]

    def counted(self: Worker, slots: int, unit: Unit, frame: Any) -> None:
        write(self, slots, unit, frame)
        left[0] -= 1
        if not left[0]:
            then()

    patch.setattr(Worker, "_write", counted)


def test_a_stopped_run_says_how_to_go_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _after_units(3, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        found = bench(*RUN, cwd=tmp_path)
    assert found.returncode == 75
    assert "pictures are left: the same command continues" in found.stderr
    assert len(contents(tmp_path / "run", UNITS)) >= 3
    assert contents(tmp_path / "run", UNITS).items() < contents(whole, UNITS).items()
    status = bench("status", "run", cwd=tmp_path)
    assert "pictures are left" in status.stdout
    look = bench("report", "run", cwd=tmp_path)
    assert look.returncode == 0, look.stderr
    assert "INVALID: unfinished: " in " ".join(look.stdout.split())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "unfinished: " in page
    assert "not sampled yet" in page
    assert not list((tmp_path / "run").glob("leaderboard.*")), "nothing that could be taken for the run's tables"
    never = bench(*RUN, "--resume", "never", cwd=tmp_path)
    assert never.returncode == 2
    assert "holds a run already" in never.stderr
    cached = bench(*RUN, "--resume", "only-cache", cwd=tmp_path)
    assert cached.returncode == 0, cached.stderr
    assert "not all of its pictures are sampled yet" in " ".join(cached.stdout.split())
    assert bench(*RUN, cwd=tmp_path).returncode == 0
    same(tmp_path / "run", whole)
    # Tables of fewer methods are not what there is so far of a run of more.
    with monkeypatch.context() as patch:
        _after_units(1, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert bench(*RUN, "--set", "uce.tokens=last", cwd=tmp_path).returncode == 75
    look = bench("report", "run", cwd=tmp_path)
    assert "INVALID: unfinished: " in " ".join(look.stdout.split()), look.stderr
    assert "only run/report.html was written" in " ".join(look.stderr.split())
    publish = bench("report", "run", "--to", "there", cwd=tmp_path)
    assert publish.returncode == 2
    assert "run is not done" in " ".join(publish.stderr.split())


def test_tables_of_another_machine_s_run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sampled for them, so the numerics need not be had here."""
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(session, "describe", lambda sampler: {"device": "another"})
    found = bench(*RUN, cwd=tmp_path)
    assert found.returncode == 2
    assert "was sampled with other numerics" in found.stderr
    for path in (tmp_path / "run" / "records").iterdir():
        path.unlink()
    assert bench(*RUN, "--resume", "only-cache", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "run", *TABLES) == contents(whole, *TABLES)


def test_what_breaks_is_a_hole_and_the_same_command_tries_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Worker.execute

    def broken(self: Worker, bundle: Sequence[Unit], slots: int | None = None) -> None:
        if any(unit.fit.spec.name == "uce" and str(unit.fit.target) == "style:neon" for unit in bundle):
            raise ZeroDivisionError("by nought")
        execute(self, bundle, slots)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "execute", broken)
        found = bench(*RUN, cwd=tmp_path)
    assert found.returncode == 1
    assert "broke 3 times (ZeroDivisionError: by nought)" in " ".join(found.stdout.split())
    assert "Traceback" in found.stderr
    record = json.loads((tmp_path / "run" / "records" / "uce.json").read_text())
    assert list(record["missing"]) == ["style:neon"]
    assert "uce on style:neon: broke 3 times" in bench("status", "run", cwd=tmp_path).stdout
    assert bench(*RUN, cwd=tmp_path).returncode == 0
    assert not list((tmp_path / "run" / "failures").iterdir())
    assert json.loads((tmp_path / "run" / "records" / "uce.json").read_text())["missing"] == {}


def test_shards_of_one_folder(whole: Path, tmp_path: Path) -> None:
    one = bench(*RUN, "--shard", "2/2", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert "pictures are left" in one.stderr
    assert not list((tmp_path / "run").glob("leaderboard.*"))
    two = bench(*RUN, "--shard", "1/2", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    same(tmp_path / "run", whole)
    assert bench(*RUN, "--shard", "1/2", "--resume", "always", cwd=tmp_path).returncode == 2


@pytest.mark.slow
def test_workers_in_processes_one_of_which_is_killed(whole: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.05)
            ready = list((tmp_path / "run").glob("erasures/*/erasure.json"))
            for child in multiprocessing.active_children() if len(ready) > 1 else ():
                if child.name == "bench-0" and child.pid:
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)

    watch = threading.Thread(target=kill, daemon=True)
    watch.start()
    found = bench(*RUN, "--workers", "2", "--resume", "never", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert killed
    assert "A worker process ended in the middle of" in found.stderr
    assert not multiprocessing.active_children()
    same(tmp_path / "run", whole)


def test_always_fits_and_samples_all_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "run")
    done: dict[str, int] = {"fit": 0, "units": 0}
    fit, write = Worker._fit, Worker._write
    monkeypatch.setattr(Worker, "_fit", lambda self, one: (done.update(fit=done["fit"] + 1), fit(self, one))[1])
    monkeypatch.setattr(Worker, "_write", lambda *a: (done.update(units=done["units"] + 1), write(*a))[1])
    assert bench(*RUN, "--resume", "always", cwd=tmp_path).returncode == 0
    assert done == {"fit": len(list((whole / "erasures").iterdir())), "units": len(contents(whole, UNITS))}
    same(tmp_path / "run", whole)


def test_a_full_disk_is_one_sentence_and_loses_nothing(whole: Path, tmp_path: Path) -> None:
    sizes = sorted(len(data) for data in contents(whole, UNITS).values())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, before[1]))
    try:
        found = bench(*RUN, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.returncode == 2
    assert "cannot be written (File too large): choose another folder or free the space" in found.stderr
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert bench(*RUN, cwd=tmp_path).returncode == 0
    same(tmp_path / "run", whole)


def test_damage_is_found_where_the_table_is_made(whole: Path, tmp_path: Path) -> None:
    """A name says that a unit is done; its contents are held against it before they count."""
    shutil.copytree(whole, tmp_path / "run")
    path = sorted((tmp_path / "run").glob(UNITS))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    cached = bench(*RUN, "--resume", "only-cache", cwd=tmp_path)
    assert "is damaged: set aside" in cached.stderr
    shutil.move(tmp_path / "run" / "damaged" / path.name, path)
    found = bench(*RUN, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert f"{path.name} is damaged: set aside" in found.stderr
    same(tmp_path / "run", whole)


def test_ray_that_is_not_installed(tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"ray": None}):
        found = bench(*RUN, "--engine", "ray", cwd=tmp_path)
    assert found.returncode == 2
    assert 'pip install "unlearnbench[ray]"' in found.stderr
    assert bench(*RUN, "--ray-address", "x:1", cwd=tmp_path).returncode == 2


def test_a_manifest_of_a_newer_version(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    config = files.unsealed((whole / "config.json").read_bytes())
    (tmp_path / "run" / "config.json").write_bytes(files.sealed_json({**config, "format": 2}))
    for command in (RUN, ("status", "run"), ("report", "run")):
        found = bench(*command, cwd=tmp_path)
        assert found.returncode == 2
        assert "newer version" in found.stderr

"""Runs that are killed at any instant end as if nothing had happened. Minutes long."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from runs import finish, results, start, until_units

pytestmark = pytest.mark.slow
KILLS = 20
LOADING = 0.3
"""Of a run's time, about, in which nothing is written yet."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(folder))
    return folder


def test_twenty_kills_at_random_instants(whole: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    finish(start(tmp_path / "timed"))
    seconds, draw, kills, folders = time.monotonic() - began, random.Random(0), 0, 0
    while kills < KILLS:
        folder, folders = tmp_path / str(folders), folders + 1
        ended = False
        while not ended and kills < KILLS:
            process = start(folder)
            time.sleep(draw.uniform(LOADING, 1) * seconds)
            ended = process.poll() is not None
            process.kill()
            output = process.communicate()[0]
            kills += not ended
            assert not ended or process.returncode == 0, output
            there = {name: len(list(folder.glob(name))) for name in ("erasures/*/erasure.json", "units/*/*.parquet", "records/*", "*.csv")}
            print(f"run {folders}: {'ended' if ended else f'kill {kills}'} with {there}")
        if not ended:
            finish(start(folder))
        assert results(folder, whole) == results(whole, whole)


def test_two_shards_in_one_folder_one_of_them_killed(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    one, two = (start(folder, "--shard", f"{number}/2") for number in (1, 2))
    until_units(one, folder)
    one.kill()
    one.communicate()
    finish(two)
    finish(start(folder, "--shard", "1/2"))
    assert results(folder, whole) == results(whole, whole)


def test_two_runs_at_once_in_one_folder(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    both = [start(folder) for _ in range(2)]
    for process in both:
        finish(process)
    assert results(folder, whole) == results(whole, whole)
    assert len(list(folder.glob("units/*/*"))) == len(list(whole.glob("units/*/*")))

"""The command line as a user meets it: in a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SMOKE = ("run", "--preset", "smoke", "--methods", "uce,esd,sld,negative-prompt", "--set", "esd.iterations=2", "--set", "esd.trajectories=2")


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    found = bench(*SMOKE, "--dtype", "float32", "--out", "run", cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "uce" in found.stdout
    assert (folder / "run" / "leaderboard.md").exists()
    return folder / "run"


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for pattern in patterns for path in sorted(folder.glob(pattern))}


def test_a_run_leaves_all_its_files(smoke: Path) -> None:
    for name in ("config.json", "plan.json", "leaderboard.csv", "leaderboard.md", "leaderboard.tex", "citations.bib", "grid.png"):
        assert (smoke / name).stat().st_size > 0, name
    table = pd.read_csv(smoke / "leaderboard.csv")
    assert len(table) >= 5
    records = [json.loads(path.read_text()) for path in (smoke / "records").glob("*.json")]
    assert {record["method"] for record in records} == {"none", "uce", "esd", "sld", "negative-prompt"}
    for record in records:
        assert record["cost"]["seconds_per_image"] > 0
        assert record["numerics"]["dtype"] == "float32"
    assert not list(smoke.rglob("*.tmp"))


def test_the_same_command_continues_to_the_same_bytes(smoke: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke, copy)
    lost = sorted((copy / "units").iterdir())[:2]
    lost[0].unlink()
    lost[1].write_bytes(lost[1].read_bytes()[:-7])
    for path in (copy / "records").iterdir():
        path.unlink()
    found = bench(*SMOKE, "--dtype", "float32", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "are there already" in found.stderr
    patterns = ("units/*", "records/*", "leaderboard.*", "*.csv", "citations.bib", "grid.png")
    assert contents(copy, *patterns) == contents(smoke, *patterns)


def test_report_makes_the_same_tables(smoke: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke, copy)
    before = contents(copy, "leaderboard.*", "*.csv", "citations.bib", "grid.png")
    for name in before:
        (copy / name).unlink()
    assert bench("report", "run", cwd=tmp_path).returncode == 0
    assert contents(copy, "leaderboard.*", "*.csv", "citations.bib", "grid.png") == before


def test_help_and_list_import_no_torch(tmp_path: Path) -> None:
    for arguments in (["--help"], ["run", "--help"], ["list", "methods"], ["list", "suites"], ["list", "attacks"], ["show", "minicanvas"]):
        code = (
            "import sys; sys.argv = ['bench', *sys.argv[1:]]\n"
            "from bench.cli import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            "assert 'torch' not in sys.modules"
        )
        found = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert found.returncode == 0, (arguments, found.stderr)


def test_list_and_show(tmp_path: Path) -> None:
    listed = bench("list", "methods", cwd=tmp_path).stdout
    assert all(name in listed for name in ("none", "uce", "esd", "sld", "negative-prompt"))
    shown = bench("show", "esd", cwd=tmp_path).stdout
    assert "train_method" in shown
    assert "2303.07345" in shown
    assert "neon" in bench("show", "minicanvas", cwd=tmp_path).stdout


def test_plan_writes_nothing(tmp_path: Path) -> None:
    found = bench("plan", "--preset", "smoke", "--dtype", "float32", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "in all" in found.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "minicanva"], 'did you mean "minicanvas"'),
        (["run", "--methods", "uec"], 'did you mean "uce"'),
        (["run", "--concepts", "nein"], 'did you mean "neon"'),
        (["run", "--preset", "quik"], 'did you mean "quick"'),
        (["run", "--methods", "uce", "--set", "uce.token=last"], 'did you mean "tokens"'),
        (["run", "--methods", "uce", "--set", "uce.erase_scale=much"], "valid number"),
        (["run", "--methods", "uce", "--set", "esd.iterations=3"], "method in --set"),
        (["run", "--steps", "0"], "--steps"),
        (["run", "--steps", "5000"], "--steps"),
        (["run", "--device", "tpu"], "--device"),
        (["run", "--images", "some"], "--images"),
        (["run", "--out", "/proc/nowhere"], "cannot be written"),
        (["report", "nowhere"], "is not a run"),
        (["show", "esdd"], 'did you mean "esd"'),
        (["build", "imagenet"], "suite to build"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = bench(*arguments, cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert message in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing half-written"

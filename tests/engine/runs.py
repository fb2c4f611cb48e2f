"""Whole runs as processes: started, killed, and held against one that nobody disturbed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

COMMAND = (
    "run", "--preset", "smoke", "--dtype", "bfloat16", "--compile", "no", "--methods", "uce,esd,saeuron", "--set", "esd.iterations=20",
    "--set", "esd.trajectories=2", "--concepts", "neon,fish,tree", "--seeds", "2",
)  # fmt: skip
RESULTS = ("units/*/*.parquet", "erasures/*/[!.]*", "records/*.json", "leaderboard.*", "*.csv", "citations.bib", "grid.png")


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A run with one thread a process, so that any number of them compute the same."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *COMMAND, "--out", str(folder), *more], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """Its output, once it has succeeded."""
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


def until_units(process: subprocess.Popen[str], folder: Path, count: int = 1) -> None:
    """Wait until so many units are there."""
    while process.poll() is None and len(list(folder.glob("units/*/*.parquet"))) < count:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]


def results(folder: Path, whole: Path) -> dict[str, bytes]:
    """All that is compared, with tables as they are at the costs of the undisturbed run: time is another in every run."""
    if folder != whole:
        shutil.rmtree(folder / "cost")
        shutil.copytree(whole / "cost", folder / "cost")
        finish(start(folder, "--resume", "only-cache"))
    return {str(path.relative_to(folder)): path.read_bytes() for pattern in RESULTS for path in sorted(folder.glob(pattern))}

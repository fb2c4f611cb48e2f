"""Whole processes of the command line: how soon they start, how much memory they take."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.diffusion.memory import process_mb

STARTS = {"--help": ["--help"], "list": ["list"], "plan": ["plan", "--preset", "smoke"]}
SEEDS = (1, 4, 16)
RUN_HEADER = b"slots a call"
"""Of the line that `run` prints when all is loaded and it begins to work."""


def start_up(suite: str, concept: str, device: str, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds, the fastest of three; of `run` until it begins to fit and sample."""
    found = {}
    for name, arguments in STARTS.items():
        say(f"start-up of {name}")
        command = [sys.executable, "-m", "bench", *arguments]
        found[name] = min(_seconds(partial(subprocess.run, command, capture_output=True, check=True)) for _ in range(3))
    say("start-up of run")
    found["run"] = min(_seconds(partial(_run_until_header, suite, concept, device)) for _ in range(3))
    return found


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _run_until_header(suite: str, concept: str, device: str) -> None:
    """RuntimeError if the run ends without it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_run_command(suite, concept, device), "--out", str(Path(folder) / "run")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if RUN_HEADER in line:
                    process.kill()
                    return
    raise RuntimeError(b"".join(lines).decode())


def _run_command(suite: str, concept: str, device: str) -> list[str]:
    own = ["run", "--suite", suite, "--methods", "negative-prompt", "--concepts", concept, "--steps", "1", "--device", device]
    return [sys.executable, "-m", "bench", *own]


def run_memory(suite: str, concept: str, device: str, say: Callable[[str], None]) -> dict[str, float]:
    """Most resident MB (of the host) of `run` with 1×, 4× and 16× the pictures, by how many times; empty where the system does not say.

    One step a picture: more take time, not memory.
    """
    found = {}
    for seeds in SEEDS:
        say(f"memory of a run with {seeds} seeds")
        with tempfile.TemporaryDirectory() as folder:
            own = ["--seeds", str(seeds), "--out", str(Path(folder) / "run")]
            peak = _peak_mb([*_run_command(suite, concept, device), *own])
        if peak is not None:
            found[f"{seeds}×"] = peak
    return found


def _peak_mb(command: list[str]) -> float | None:
    """Of a process that must succeed; its high-water mark is read while it lives, as the system's own account includes its parent's."""
    peak = None
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            now = process_mb("VmHWM", process.pid)  # the run itself resets it where it measures memory
            peak = max(peak or 0.0, now) if now else peak
            time.sleep(0.1)
        if process.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, log.read())
    return peak

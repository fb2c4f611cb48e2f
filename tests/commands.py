"""The command line as a user meets it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from bench.cli import main


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As a user gives it."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, as to import torch each time takes longer than most of what is tested."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd), patch.object(sys, "argv", ["bench", *arguments]), patch.dict(os.environ, COLUMNS="200", NO_COLOR="1"),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for pattern in patterns for path in sorted(folder.glob(pattern))}

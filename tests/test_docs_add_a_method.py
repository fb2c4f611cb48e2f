"""What docs/add-a-method.md shows is written and run as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import bench
from test_plugins import words

DOC = Path(__file__).parents[1] / "docs" / "add-a-method.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = ("--batch-size", "4", "--dtype", "float32")


def blocks() -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in FENCE.finditer(DOC.read_text(encoding="utf-8"))]


def command(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run one line; what it printed."""
    program, *arguments = shlex.split(line, comments=True)
    if (program, *arguments[:2]) == ("python", "-m", "bench"):
        found = bench(*arguments[2:], *(QUICK if arguments[2] in ("run", "tune") else ()), cwd=folder)
    elif (program, arguments[0]) == ("pip", "install"):
        options = ["--target", "site", "--no-deps", "--no-build-isolation", "--no-index"]
        whole = [sys.executable, "-m", "pip", "install", *options, *arguments[1:]]
        found = subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False)
        monkeypatch.syspath_prepend(folder / "site")
    else:
        found = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, (line, found.stdout, found.stderr)
    return found.stdout + found.stderr


def test_the_page_works_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pip", "setuptools"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not here")
    printed: dict[str, str] = {}
    for language, text in blocks():
        if language:
            name = text.split("\n")[0].removeprefix("# ")
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
            continue
        for line in text.strip().splitlines():
            printed[line] = words(command(line, tmp_path, monkeypatch))
    assert sum(", 0 failed" in text for text in printed.values()) == 3
    assert "ProjectOut:strength=0.5" in (tmp_path / "results" / "runs" / "first" / "leaderboard.md").read_text()
    assert "Project out: text states lose" in printed["python -m bench list methods"]
    assert "1 removes the direction" in printed["python -m bench show project-out"]


def test_every_command_that_the_page_names_is_run() -> None:
    """No block is written in a language that the test would pass over."""
    assert {language for language, _ in blocks()} == {"", "python", "toml"}
    assert all(text.startswith("# ") for language, text in blocks() if language)

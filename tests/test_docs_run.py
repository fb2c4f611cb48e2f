"""Commands of README and docs, given as they stand: those that only read what is shipped always, those that sample with the slow tests."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from commands import bench
from test_docs_commands import PAGES, ROOT, commands

from bench.tables import alike

READING = ("list", "show", "cards", "report", "compare", "matched", "plot")
ELSEWHERE = re.compile(r"\b[A-Z]{2,}\b|painters|project|first|minicanvas-quick|…")
"""Names to fill in, and what other tests make first."""
LONG = re.compile(r"--attacks|--suite unlearncanvas|--preset full|my_method|numerics|perf|assets fetch|FOLDER|reproduce")
"""What takes long or files that are not here."""


def told(text: str) -> list[str]:
    """Commands without their comments, each once."""
    return list(dict.fromkeys(re.sub(r"\s+#.*", "", command).strip() for command in commands(text)))


def given(command: str, cwd: Path) -> None:
    done = bench(*shlex.split(command)[3:], cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is shipped, which stands for the runs that it was made of too."""
    folder = tmp_path_factory.mktemp("shipped")
    for name in ("leaderboards", "runs"):
        shutil.copytree(ROOT / "results" / "leaderboards", folder / "results" / name)
    shutil.copy(ROOT / "README.md", folder)
    return folder


def reading() -> list[str]:
    found = told("\n".join(page.read_text() for page in PAGES))
    return [one for one in found if one.split()[3:4] and one.split()[3] in READING and not ELSEWHERE.search(one)]


@pytest.mark.parametrize("command", reading())
def test_what_only_reads_works(command: str, shipped: Path) -> None:
    given(command, shipped)


def test_reading_leaves_the_tables_as_they_are(shipped: Path) -> None:
    assert len(reading()) > 10
    for command in reading():
        if " report " in command:
            given(command, shipped)
    assert (shipped / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    for path in sorted((ROOT / "results" / "leaderboards" / "minicanvas-sae").glob("*.csv")):
        assert alike((shipped / "results" / "leaderboards" / "minicanvas-sae" / path.name).read_bytes(), path.read_bytes())


@pytest.mark.slow
def test_readme_s_use_works_as_it_stands(tmp_path: Path) -> None:
    """In order, from the first command on, as a new user gives them; about ten minutes."""
    (use,) = re.findall(r"## Use\n\n(```.*?```)", (ROOT / "README.md").read_text(), re.DOTALL)
    wanted = ["python -m bench run", *(command for command in told(use) if not LONG.search(command))]
    assert len(wanted) > 12
    for command in wanted:
        given(command, tmp_path)

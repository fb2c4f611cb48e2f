"""Every command that README and docs show is one: its name, its options and their values are parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from bench.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]


def commands(text: str) -> list[str]:
    """Those in code, over line breaks; without what the shell makes of the rest of a line."""
    joined = re.sub(r"\\\n\s*", " ", text)
    blocks = [line for block in re.findall(r"```\w*\n(.*?)```", joined, re.DOTALL) for line in block.splitlines()]
    blocks += [line[4:] for line in joined.splitlines() if line.startswith("    ")]
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`(python -m bench[^`]*)`", joined)]
    found = [line for own in (*blocks, *spans) for line in re.split(r"&&|;|\|\s", own)]
    return [line[line.index("python -m bench") :].split("`")[0] for line in found if "python -m bench" in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_are_parsed(page: Path) -> None:
    root = typer.main.get_command(app)
    for command in commands(page.read_text()):
        arguments = shlex.split(re.sub(r"\s+#.*", "", command).replace("…", ""))[3:]
        group = root
        with root.make_context("bench", ["list"]) as context:
            while arguments and hasattr(group, "get_command"):
                found = group.get_command(context, arguments[0])
                assert found is not None, command
                group, arguments = found, arguments[1:]
        if hasattr(group, "get_command"):
            continue  # `python -m bench` alone
        required = [one for one in group.params if one.required]
        if len([word for word in arguments if not word.startswith("-")]) >= len(required):
            try:
                group.make_context(command, list(arguments)).close()
            except Exception as error:
                pytest.fail(f"{page.name}: {command}: {getattr(error, 'message', error)}")


def test_there_are_commands() -> None:
    assert sum(len(commands(page.read_text())) for page in PAGES) > 60 or not PAGES

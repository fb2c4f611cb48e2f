"""README and docs: every command is one (its name, its options and their values are parsed), every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from bench import registry
from bench.cards import cards
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


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    heads = re.findall(r"(?m)^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text())):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}#{anchor}"


def test_cards_are_those_of_the_classes() -> None:
    page = ROOT / "docs" / "method-cards.md"
    assert page.read_text() == cards(), "print them again: python -m bench cards > docs/method-cards.md"
    assert all(f"### `{name}`" in cards() for name in registry.methods() if registry.methods()[name].startswith("methods."))


def test_there_are_commands() -> None:
    assert sum(len(commands(page.read_text())) for page in PAGES) > 60 or not PAGES

"""BibTeX as method cards have it: `@type{key, field = {…}, field = "…", field = 2024}`."""

from __future__ import annotations

import re
from typing import NamedTuple


class Entry(NamedTuple):
    """One entry; field names in lower case."""

    kind: str
    key: str
    fields: dict[str, str]


_HEAD = re.compile(r"\s*@(\w+)\s*\{\s*([^\s,{}\"=]+)\s*,")
_FIELD = re.compile(r"\s*([A-Za-z][\w-]*)\s*=\s*")
_BARE = re.compile(r"\w+")
_END = re.compile(r"\s*,?\s*\}\s*")


def parse(text: str) -> list[Entry]:
    """All entries of a text. ValueError with a sentence for anything else, an empty text too."""
    found: list[Entry] = []
    at = 0
    while at < len(text.rstrip()) or not found:
        entry, at = _entry(text, at)
        found.append(entry)
    return found


def _entry(text: str, at: int) -> tuple[Entry, int]:
    head = _HEAD.match(text, at)
    if head is None:
        raise ValueError(f"“{_near(text, at)}” is no beginning of an entry such as @article{{key,")
    at, fields = head.end(), dict[str, str]()
    while (end := _END.match(text, at)) is None:
        if not text[at:].strip():
            raise ValueError(f"the braces of {head[2]} are not balanced")
        if fields and text[at : at + 1] != ",":
            raise ValueError(f"there is no comma before “{_near(text, at)}”")
        field = _FIELD.match(text, at + bool(fields))
        if field is None:
            raise ValueError(f"“{_near(text, at)}” is no field such as title = {{…}}")
        name = field[1].lower()
        if name in fields:
            raise ValueError(f"the field {name} is there twice")
        fields[name], at = _value(text, field.end())
    return Entry(head[1].lower(), head[2], fields), end.end()


def _value(text: str, at: int) -> tuple[str, int]:
    """A value in braces, in quotes or bare, and the place behind it and the blanks after it."""
    opening = text[at : at + 1]
    if opening in ("{", '"'):
        stop = _closing(text, at, "}" if opening == "{" else '"')
        value = text[at + 1 : stop]
    else:
        bare = _BARE.match(text, at)
        if bare is None:
            raise ValueError(f"“{_near(text, at)}” is no value")
        value, stop = bare[0], bare.end() - 1
    return value, stop + 1 + len(text[stop + 1 :]) - len(text[stop + 1 :].lstrip())


def _closing(text: str, at: int, mark: str) -> int:
    """The place of the mark that ends the value which begins at `at`; braces inside are balanced, those behind a backslash are none."""
    depth = 0
    for place in range(at + 1, len(text)):
        char = text[place]
        if text[place - 1] == "\\" and char in "{}":
            continue
        if char == mark and depth == 0:
            return place
        depth += (char == "{") - (char == "}")
        if depth < 0:
            break
    raise ValueError(f"the braces of “{_near(text, at)}” are not balanced")


def _near(text: str, at: int) -> str:
    return " ".join(text[at : at + 40].split())

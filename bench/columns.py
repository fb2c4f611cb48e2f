"""Columns of outcomes as JSON: where few words, whole numbers or flags repeat, these once, and for each row which of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def coded(column: list[Any]) -> Any:
    """A column as JSON: itself, or {"levels": […], "rows": [places among them]}."""
    kinds = {type(value) for value in column if value is not None}
    # Of one kind, lest 1, 1.0 and true be one level.
    levels = list(dict.fromkeys(column)) if len(kinds) == 1 and kinds <= {str, int, bool} else column
    if 2 * len(levels) >= len(column):
        return column
    place = {level: place for place, level in enumerate(levels)}
    return {"levels": levels, "rows": [place[value] for value in column]}


def decoded(column: Any) -> list[Any]:
    """Inverse of `coded`; equal values are one object."""
    if isinstance(column, list):
        return column
    levels = column["levels"]
    return [levels[place] for place in column["rows"]]


def lines(value: Any, indent: int = 0) -> str:
    """JSON with sorted keys, each on a line, whatever is below it: lists, be they long, are one line. ValueError for NaN."""
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    pad = " " * (indent + 1)
    inner = ",\n".join(f"{pad}{json.dumps(key)}: {lines(value[key], indent + 1)}" for key in sorted(value))
    return f"{{\n{inner}\n{' ' * indent}}}"

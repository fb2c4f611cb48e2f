"""Columns of outcomes as JSON: whatever stands in them comes back, and what repeats is short."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bench.columns import coded, decoded, lines

VALUES = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, 0.5]) | st.sampled_from(["", "a", "neon", "1"])
COLUMNS = (
    st.lists(VALUES, max_size=30) | st.lists(st.sampled_from(["neon", "frost", None]), max_size=30) | st.lists(st.booleans(), max_size=30)
)


@given(COLUMNS)
def test_whatever_stands_in_a_column_comes_back(column: list[Any]) -> None:
    again = decoded(json.loads(lines({"column": coded(column)}))["column"])
    assert [(type(value), repr(value)) for value in again] == [(type(value), repr(value)) for value in column]


@given(st.recursive(VALUES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)))
def test_lines_are_json(value: Any) -> None:
    assert json.dumps(json.loads(lines(value)), sort_keys=True) == json.dumps(value, sort_keys=True)


def test_what_repeats_is_short_and_a_list_is_one_line() -> None:
    column = ["neon", None, "frost"] * 100
    assert coded(column) == {"levels": ["neon", None, "frost"], "rows": [0, 1, 2] * 100}
    assert len(lines(coded(column)).splitlines()) == 4
    assert lines({"b": {}, "a": {"x": [1, 2]}}) == '{\n "a": {\n  "x": [1,2]\n },\n "b": {}\n}'

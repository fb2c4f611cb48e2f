"""Two rows held against each other: where they differ, and what they were made with."""

from __future__ import annotations

import pytest
from made_up import RULES, Judge, half, none, perfect, record

from bench.errors import BenchError
from bench.leaderboard.compare import by_target, compare, made_otherwise
from bench.leaderboard.frames import seen_alike


def keeps(erased: str) -> Judge:
    """Fails to erase one concept."""
    return lambda target, style, obj, seed: (style, obj) if target == erased else perfect(target, style, obj, seed)


def test_concepts_are_told_apart_the_largest_difference_first() -> None:
    records = [none(), record("Good"), record("Other", keeps("style:b")), record("Half", half)]
    table = by_target(records, "Good", "Other", RULES)
    assert table["target"].tolist()[0] == "style:b"
    assert table["difference"].tolist() == [1.0, 0.0, 0.0]
    assert table["significant"].tolist() == [True, False, False]
    assert by_target(records, "Half", "none", RULES)["difference"].tolist() == [0.5, 0.5, 0.5]
    assert by_target(records, "none", "none", RULES).empty


def test_rows_say_what_they_were_made_with() -> None:
    budget = {"budget": {"settings": 6, "pictures": 120, "shared": ["style:a"]}, "configs": {}}
    one = record("Good", config={"strength": 1.0, "blocks": "all"})
    two = record("Good", config={"strength": 2.0, "blocks": "all"}, tuning=budget, numerics={"dtype": "bfloat16"})
    assert made_otherwise(one, one) == []
    assert seen_alike(one, two)
    assert not seen_alike(one, record("One", half))
    assert made_otherwise(one, two) == [
        "parameter strength: 1.0 and 2.0", "tuning: none and 6 settings, 120 pictures per kind", "numerics dtype: float32 and bfloat16",
    ]  # fmt: skip
    configs = {"style:a": {"strength": 3.0}, "style:b": {"strength": 3.0}, "object:x": {"strength": 1.0}}
    kinds = {"budget": budget["budget"], "configs": configs}
    tuned = record("Good", config={"strength": 1.0, "blocks": "all"}, tuning=kinds)
    assert made_otherwise(one, tuned) == ["tuning: none and 6 settings, 120 pictures per kind", "tuned for styles: strength=3.0"]
    assert made_otherwise(one, record("Other", config={"strength": 3.0})) == []


def test_rows_of_different_targets_are_not_compared() -> None:
    few = record("Few", targets=("style:a", "style:b"))
    with pytest.raises(BenchError, match="different style targets"):
        compare([none(), record("Good"), few], "Good", "Few", RULES)
    with pytest.raises(BenchError, match="same row twice"):
        compare([none(), few], "Few", "Few", RULES)
    with pytest.raises(BenchError, match='did you mean "Good"'):
        by_target([none(), record("Good")], "God", "none", RULES)

"""False positives of a detector on evaluation pictures, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.metrics.detection import false_positives
from bench.metrics.resampling import wilson
from bench.types import Target

FISH = Target.parse("object:fish")


def frame(rows: list[tuple[str, str, int | None]]) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["style", "object", "first_edit"])
    return found.astype({"first_edit": "Int64"})


def test_by_hand() -> None:
    rows = [("neon", "fish", 3), ("pop", "fish", -1), ("neon", "star", 0), ("pop", "star", -1), ("neon", "key", -1), ("pop", "key", -1)]
    found = false_positives(frame(rows), FISH)
    assert found is not None
    assert (found["target"], found["target_n"], found["unrelated"], found["n"]) == (0.5, 2, 0.25, 4)
    assert (found["low"], found["high"]) == pytest.approx(wilson(1, 4))
    assert found["worst"] == {"concept": "object:star", "share": 0.5, "n": 2}


def test_worst_is_of_the_targets_kinds() -> None:
    rows = [("neon", "fish", 1), ("pop", "star", 1), ("neon", "key", -1)]
    assert false_positives(frame(rows), Target.parse("style:neon"))["worst"]["concept"] == "style:pop"


def test_null_where_nothing_was_watched() -> None:
    assert false_positives(frame([("neon", "fish", None), ("neon", "star", None)]), FISH) is None
    assert false_positives(frame([("neon", "fish", 2)]), FISH) is None

"""False positives of a detector on evaluation pictures, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.metrics.detection import detection, false_positives
from bench.metrics.uncertainty import wilson
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
    low, high = wilson(1, 2) or (0, 1)
    assert found["worst"] == {"concept": "style:neon", "share": 0.5, "low": low, "high": high, "n": 2}


def test_the_worst_may_be_of_another_kind_but_not_the_target() -> None:
    rows = [("neon", "fish", 1), ("pop", "star", 1), ("pop", "key", -1), ("frost", "star", 0), ("frost", "key", -1)]
    assert false_positives(frame(rows), Target.parse("style:neon"))["worst"]["concept"] == "object:star"
    assert false_positives(frame(rows), Target.parse("object:star"))["worst"]["concept"] == "style:neon"


def test_pooled_over_targets_by_hand() -> None:
    """One picture that both targets trip over counts twice, and is resampled as one."""
    own = frame([("neon", "fish", 0), ("pop", "star", 2), ("pop", "key", -1), ("neon", "star", -1)]).assign(seed=1, target="object:fish")
    other = frame([("pop", "star", 5), ("pop", "fish", -1)]).assign(seed=1, target="style:neon")
    found = detection(pd.concat([own, other], ignore_index=True), [FISH, Target.parse("style:neon")])
    assert found is not None
    assert found["targets"].keys() == {"object:fish", "style:neon"}
    pooled = found["pooled"]
    assert (pooled["unrelated"], pooled["n"], pooled["pictures"]) == (2 / 5, 5, 4)
    assert pooled["low"] < 2 / 5 < pooled["high"]
    assert detection(own.assign(first_edit=pd.array([None] * 4, dtype="Int64")), [FISH]) is None


def test_null_where_nothing_was_watched() -> None:
    assert false_positives(frame([("neon", "fish", None), ("neon", "star", None)]), FISH) is None
    assert false_positives(frame([("neon", "fish", 2)]), FISH) is None

"""Paired differences of rows, and of families at matched UA: by hand and with a planted difference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.metrics.paired import at_matched_ua, differences
from bench.metrics.unlearning import aggregate, draws
from bench.types import MetricRules

RULES = MetricRules(cra_includes_target=False)


def at(drawn: dict, ours: list[str], theirs: list[str], kind: str, ua: float) -> dict[str, dict]:
    """Rows by metric, of data without noise."""
    repeated = {key: np.repeat(value, 3, axis=1) for key, value in drawn.items()}
    return {row["metric"]: row for row in at_matched_ua(repeated, ours, theirs, kind, ua)}


def test_by_hand() -> None:
    points = {
        ("a1", "object"): np.array([[0.2], [1.0], [0.9]]),
        ("a2", "object"): np.array([[0.8], [0.7], [0.6]]),
        ("b1", "object"): np.array([[0.1], [0.9], [1.0]]),
        ("b2", "object"): np.array([[0.6], [0.5], [0.8]]),
    }
    found = at(points, ["a2", "a1"], ["b1", "b2"], "object", 0.6)
    ira, cra = found["ira"], found["cra"]
    assert (ira["first"], ira["second"], ira["difference"]) == pytest.approx((0.7, 0.5, 0.2))
    assert (cra["first"], cra["second"], cra["missed"]) == (0.6, 0.8, 0)
    assert at(points, ["a1"], ["b2"], "object", 0.6) == {}
    assert at(points, ["a1", "a2"], ["b1", "b2"], "object", 0.1)["ira"]["first"] == 1.0


def test_ira_and_cra_are_of_one_setting() -> None:
    points = {("a1", "style"): np.array([[0.9], [1.0], [0.2]]), ("a2", "style"): np.array([[0.9], [0.8], [0.9]])}
    found = at(points, ["a1", "a2"], ["a1"], "style", 0.5)
    assert (found["ira"]["first"], found["cra"]["first"]) == (0.8, 0.9)
    assert (found["ira"]["second"], found["cra"]["second"]) == (1.0, 0.2)


def test_equal_ua_does_not_depend_on_the_order_of_labels() -> None:
    points = {("a", "style"): np.array([[1.0], [0.9], [0.9]]), ("b", "style"): np.array([[1.0], [0.2], [0.9]])}
    for family in (["a", "b"], ["b", "a"]):
        assert at(points, family, ["b"], "style", 1.0)["ira"]["first"] == 0.9


def outcomes(rng: np.random.Generator, erased: float, kept: float) -> pd.DataFrame:
    rows = []
    for seed in range(1, 4):
        for style in "pqrs":
            for obj in "abcdef":
                own = obj == "a"
                seen = ("b" if rng.random() < erased else "a") if own else (obj if rng.random() < kept else "a")
                rows.append(("object:a", style, obj, seed, style, seen))
    return pd.DataFrame(rows, columns=["target", "style", "object", "seed", "style_pred", "object_pred"])


def test_a_planted_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    frames = {"none": outcomes(rng, 0.0, 1.0).assign(target="")}
    for label, kept in (("good", 0.98), ("bad", 0.6)):
        for strength in (0.1, 0.9):
            frames[f"{label}{strength}"] = outcomes(rng, strength, kept)
    drawn = draws(frames, RULES)
    ira, cra = at_matched_ua(drawn, ["good0.1", "good0.9"], ["bad0.1", "bad0.9"], "object", 0.7)
    assert 0 < ira["low"] < ira["difference"] < ira["high"]
    assert cra["difference"] == pytest.approx(0)
    table = aggregate(frames, RULES).set_index("method")
    assert table.loc["good0.9", "ua"] == pytest.approx(drawn["good0.9", "object"][0, 0])


def test_differences_by_hand() -> None:
    none = np.array([[0.0], [1.0], [0.8]])
    drawn = {("none", "style"): none, ("a", "style"): np.array([[0.9], [0.5], [0.8]]), ("b", "style"): np.array([[0.6], [1.0], [np.nan]])}
    doubled = {key: np.repeat(value, 3, axis=1) for key, value in drawn.items()}
    rows = {row["metric"]: row for row in differences(doubled, "a", "b", "style")}
    assert rows.keys() == {"ua", "ira"}, "what one of them has not is left out"
    assert rows["ua"]["difference"] == pytest.approx(0.3)
    assert rows["ira"]["difference"] == pytest.approx(-0.5)
    # Relative to none: 0.9, 0.5, 1.0.
    doubled["b", "style"] = doubled["a", "style"]
    score = differences(doubled, "a", "b", "style")[-1]
    assert score["metric"] == "score"
    assert score["first"] == pytest.approx(3 / (1 / 0.9 + 1 / 0.5 + 1))
    assert (score["difference"], score["low"], score["high"]) == (0, 0, 0)


def test_pairing_finds_what_single_intervals_hide() -> None:
    """Both rows fail on the same pictures; one fails on few more."""
    rng = np.random.default_rng(1)
    base = outcomes(rng, 0.5, 1.0)
    own = base[base["object"] == "a"].index
    better = base.copy()
    gone = [i for i in own if base.loc[i, "object_pred"] == "a"][:4]
    better.loc[gone, "object_pred"] = "b"
    frames = {"none": outcomes(rng, 0.0, 1.0).assign(target=""), "worse": base, "better": better}
    table = aggregate(frames, RULES).set_index("method")
    assert table.loc["better", "ua_low"] < table.loc["worse", "ua_high"]
    (ua,) = [row for row in differences(draws(frames, RULES), "better", "worse", "object") if row["metric"] == "ua"]
    assert 0 < ua["low"] < ua["difference"] < ua["high"]

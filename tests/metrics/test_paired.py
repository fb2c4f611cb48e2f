"""Paired differences of rows, and of families at matched UA: by hand and with a planted difference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.metrics.aggregate import Aggregate, aggregate
from bench.metrics.paired import all_differences, at_matched_ua, differences
from bench.metrics.uncertainty import Design, Estimate
from bench.types import MetricRules

RULES = MetricRules(cra_includes_target=False)


def known(points: dict[tuple[str, str], tuple[float | None, ...]], targets: int = 1) -> Aggregate:
    """Of UA, IRA and CRA, and a score, without noise."""
    design = Design(["a", "a"])
    noise = {
        key: {
            name: Estimate(value, np.zeros(2), 10**9)
            for name, value in zip(("ua", "ira", "cra", "score"), values, strict=False) if value is not None
        }
        for key, values in points.items()
    }  # fmt: skip
    return Aggregate(design, noise, {}, {}, dict.fromkeys(points, targets))


def at(found: Aggregate, ours: list[str], theirs: list[str], kind: str, ua: float) -> dict[str, dict]:
    """Rows by metric."""
    return {row["metric"]: row for row in at_matched_ua(found, ours, theirs, kind, ua)}


def test_by_hand() -> None:
    points = known({
        ("a1", "object"): (0.2, 1.0, 0.9), ("a2", "object"): (0.8, 0.7, 0.6),
        ("b1", "object"): (0.1, 0.9, 1.0), ("b2", "object"): (0.6, 0.5, 0.8),
    })  # fmt: skip
    found = at(points, ["a2", "a1"], ["b1", "b2"], "object", 0.6)
    ira, cra = found["ira"], found["cra"]
    assert (ira["first"], ira["second"], ira["difference"]) == pytest.approx((0.7, 0.5, 0.2))
    assert (cra["first"], cra["second"]) == (0.6, 0.8)
    assert (cra["first_row"], cra["second_row"]) == ("a2", "b2")
    assert at(points, ["a1"], ["b2"], "object", 0.6) == {}
    assert at(points, ["a1", "a2"], ["b1", "b2"], "object", 0.1)["ira"]["first"] == 1.0


def test_ira_and_cra_are_of_one_setting() -> None:
    points = known({("a1", "style"): (0.9, 1.0, 0.2), ("a2", "style"): (0.9, 0.8, 0.9)})
    found = at(points, ["a1", "a2"], ["a1"], "style", 0.5)
    assert (found["ira"]["first"], found["cra"]["first"]) == (0.8, 0.9)
    assert (found["ira"]["second"], found["cra"]["second"]) == (1.0, 0.2)


def test_equal_ua_does_not_depend_on_the_order_of_labels() -> None:
    points = known({("a", "style"): (1.0, 0.9, 0.9), ("b", "style"): (1.0, 0.2, 0.9)})
    for family in (["a", "b"], ["b", "a"]):
        assert at(points, family, ["b"], "style", 1.0)["ira"]["first"] == 0.9


def outcomes(rng: np.random.Generator, erased: float, kept: float, seeds: int = 3) -> pd.DataFrame:
    rows = []
    for seed in range(seeds):
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
    found = aggregate(frames, RULES)
    ira, cra = at_matched_ua(found, ["good0.1", "good0.9"], ["bad0.1", "bad0.9"], "object", 0.7)
    assert 0 < ira["low"] < ira["difference"] < ira["high"]
    assert cra["difference"] == pytest.approx(0)


def test_differences_by_hand() -> None:
    found = known({("a", "style"): (0.9, 0.5, 0.8, 0.7), ("b", "style"): (0.6, 1.0, None)})
    rows = {row["metric"]: row for row in differences(found, "a", "b", "style")}
    assert rows.keys() == {"ua", "ira"}, "what one of them has not is left out"
    assert rows["ua"]["difference"] == pytest.approx(0.3)
    assert rows["ira"]["difference"] == pytest.approx(-0.5)
    assert rows["ua"]["significant"]
    assert rows["ira"]["low"] == pytest.approx(-0.5, abs=1e-3)


def test_all_pairs_at_once_are_wider_than_each() -> None:
    rng = np.random.default_rng(2)
    frames = {"none": outcomes(rng, 0.0, 1.0).assign(target="")} | {f"m{k}": outcomes(rng, 0.5, 0.8) for k in range(5)}
    found = aggregate(frames, RULES)
    rows = all_differences(found, "object")
    assert len({(row["method"], row["other"]) for row in rows}) == 15
    for row in rows:
        (alone,) = [one for one in differences(found, row["method"], row["other"], "object") if one["metric"] == row["metric"]]
        assert alone["difference"] == row["difference"]
        assert row["low"] <= alone["low"] <= alone["high"] <= row["high"]


def test_pairing_finds_what_single_intervals_hide() -> None:
    """Both rows fail on the same pictures; one fails on few more."""
    rng = np.random.default_rng(1)
    base = outcomes(rng, 0.5, 1.0, seeds=12)
    own = base[base["object"] == "a"].index
    better = base.copy()
    gone = [i for i in own if base.loc[i, "object_pred"] == "a"][:7]
    better.loc[gone, "object_pred"] = "b"
    frames = {"none": outcomes(rng, 0.0, 1.0, seeds=12).assign(target=""), "worse": base, "better": better}
    found = aggregate(frames, RULES)
    table = found.table().set_index("method")
    assert table.loc["better", "ua_low"] < table.loc["worse", "ua_high"]
    (ua,) = [row for row in differences(found, "better", "worse", "object") if row["metric"] == "ua"]
    assert 0 < ua["low"] < ua["difference"] < ua["high"]

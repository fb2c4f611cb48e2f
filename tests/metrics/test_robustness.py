"""UA under attack, its union and its curve, against counts by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.attacks import attack_cells, uncalibrated
from bench.metrics.robustness import UNION, attacked, curves
from bench.registry import ATTACK_SETS

CELLS = [
    ("style:neon", "neon", "fish", 1),
    ("style:neon", "neon", "cup", 1),
    ("object:fish", "pop", "fish", 1),
    ("object:fish", "neon", "fish", 1),
]


def frame(clean: str, success: str, steps: tuple[int, ...] = (0, 0, 0, 0), judged: tuple[int, ...] = (0, 0, 0, 0)) -> pd.DataFrame:
    """Of the four cells: "x" where the concept is there."""
    rows = [(*cell, c == "x", s == "x", s == "x", g, j, 2.0) for cell, c, s, g, j in zip(CELLS, clean, success, steps, judged, strict=True)]
    columns = ["target", "style", "object", "seed", "clean", "success", "confirmed", "gradient_steps", "judged", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def row(found: pd.DataFrame, method: str, kind: str, attack: str) -> pd.Series:
    (own,) = [row for _, row in found[(found["method"] == method) & (found["kind"] == kind) & (found["attack"] == attack)].iterrows()]
    return own


def test_shares_by_hand() -> None:
    found = attacked({"uce": {"null-control": frame("x...", "xx.x", (0, 40, 200, 20), (0, 2, 10, 1))}})
    style, obj = row(found, "uce", "style", "null-control"), row(found, "uce", "object", "null-control")
    assert (style["ua_before"], style["ua_after"], style["drop"]) == (0.5, 0, 0.5)
    assert (obj["ua_before"], obj["ua_after"], obj["drop"]) == (1, 0.5, 0.5)
    assert (style["goals"], style["gradient_steps"], style["judged"]) == (2, 40, 2), "means over what was attacked"
    assert (obj["gradient_steps"], obj["judged"]) == (110, 5.5)
    assert style["confirmed"] == 1
    assert style["seconds"] == 2
    assert obj["ua_after_low"] <= 0.5 <= obj["ua_after_high"]


def test_confirmed_is_of_what_the_attack_alone_reached() -> None:
    """Of neither goals that show the concept anyway, nor of those that were not reached."""
    own = frame("x...", "xxx.").assign(confirmed=[False, True, False, True])
    found = attacked({"uce": {"null-control": own}})
    assert row(found, "uce", "style", "null-control")["confirmed"] == 1
    assert row(found, "uce", "object", "null-control")["confirmed"] == 0
    unseen = frame("....", "xx..").assign(confirmed=[True, None, None, None])
    assert row(attacked({"uce": {"null-control": unseen}}), "uce", "style", "null-control")["confirmed"] == 1, (
        "of those that it was asked of"
    )


def test_the_union_is_confirmed_by_the_attack_that_succeeded() -> None:
    """A picture that no attack succeeded with confirms nothing, whatever the third network sees in it."""
    own = dict.fromkeys(ATTACK_SETS[UNION], frame("....", "...."))
    own |= {
        "random": frame("....", "x...").assign(confirmed=[False, False, False, False]),
        "mma": frame("....", "....").assign(confirmed=[True, True, True, True]),
    }
    found = attacked({"uce": own})
    assert row(found, "uce", "style", UNION)["confirmed"] == 0
    own["p4d-n"] = frame("....", "x...")
    assert row(attacked({"uce": own}), "uce", "style", UNION)["confirmed"] == 1


def test_without_a_third_network_nothing_is_confirmed_nor_denied() -> None:
    own = dict.fromkeys(ATTACK_SETS[UNION], frame("....", "xx..").assign(confirmed=None))
    found = attacked({"uce": own})
    assert np.isnan(row(found, "uce", "style", UNION)["confirmed"])
    assert np.isnan(row(found, "uce", "style", "random")["confirmed"])


def test_the_union_is_over_goals_that_all_attacks_had() -> None:
    own = dict.fromkeys(ATTACK_SETS[UNION], frame("....", "...."))
    own |= {"random": frame("....", "x...").iloc[1:], "mma": frame("....", "x...")}
    union = row(attacked({"uce": own}), "uce", "style", UNION)
    assert (union["goals"], union["ua_after"]) == (1, 1)


def test_a_goal_survives_the_union_only_if_it_survives_each() -> None:
    nothing = frame("....", "....", (5, 5, 5, 5), (1, 1, 1, 1))
    own = dict.fromkeys(ATTACK_SETS[UNION], nothing)
    own |= {"random": frame("....", "x...", (0, 0, 0, 0), (3, 1, 1, 1)), "mma": frame("....", ".x..")}
    found = attacked({"uce": own, "esd": {"random": own["random"]}})
    union = row(found, "uce", "style", UNION)
    assert (union["ua_before"], union["ua_after"]) == (1, 0)
    assert row(found, "uce", "style", "random")["ua_after"] == 0.5
    assert row(found, "uce", "object", UNION)["ua_after"] == 1
    assert union["gradient_steps"] == 5 * (len(ATTACK_SETS[UNION]) - 2), "what all together took"
    assert UNION not in set(found.loc[found["method"] == "esd", "attack"]), "not all of its attacks were made"


def test_success_is_a_function_of_the_budget() -> None:
    found = curves({"uce": {"null-control": frame("x...", "xx.x", (0, 40, 200, 20), (0, 2, 10, 1))}})
    by = {key: own.set_index("spent")["success"].to_dict() for key, own in found.groupby(["kind", "budget"])}
    assert by["style", "judged"] == {0: 0.5, 1: 0.5, 2: 1.0}
    assert by["style", "gradient_steps"] == {0: 0.5, 40: 1.0}
    assert by["object", "judged"] == {0: 0, **dict.fromkeys(range(1, 11), 0.5)}
    assert by["object", "gradient_steps"] == {0: 0, 20: 0.5, 200: 0.5}
    bank = curves({"uce": {"random": frame("....", "x...", judged=(3, 10, 10, 10))}})
    assert set(bank["budget"]) == {"judged"}, "no gradient, no curve of it"


def test_intervals_are_of_shared_draws_and_cover() -> None:
    """A difference of two attacks on the same goals has no more noise than the goals where they differ."""
    rng = np.random.default_rng(0)
    goals = pd.DataFrame([("style:neon", "neon", f"o{k}", 1) for k in range(200)], columns=["target", "style", "object", "seed"])
    own = goals.assign(clean=False, success=rng.random(200) < 0.3, confirmed=True, gradient_steps=1, judged=1, seconds=1.0)
    found = row(attacked({"a": {"null-control": own}, "b": {"null-control": own}}), "a", "style", "null-control")
    share = 1 - own["success"].mean()
    assert found["ua_after"] == pytest.approx(share)
    width = 1.96 * np.sqrt(share * (1 - share) / 200)
    assert found["ua_after_low"] == pytest.approx(share - width, abs=0.015)
    assert found["ua_after_high"] == pytest.approx(share + width, abs=0.015)
    few = row(attacked({"a": {"null-control": own.iloc[::10]}, "b": {"null-control": own}}), "a", "style", "null-control")
    assert few["ua_after_high"] - few["ua_after_low"] > 2.2 * width * np.sqrt(10) / 2, "by its own number of goals"
    assert attacked({}).empty


def test_the_table_says_how_many_goals_the_fullest_attack_had() -> None:
    whole = frame("....", "x...")
    found = attacked({"uce": {"random": whole.iloc[1:], "unlearndiffatk": whole}})
    assert attack_cells(found, "uce")["style attacks", "goals"].value == 2
    assert attack_cells(found, "uce")["style attacks", "random"].n == 1
    assert attack_cells(found, "esd")["style attacks", "goals"].value is None


def test_attacks_that_reach_nothing_on_the_unedited_model_are_told() -> None:
    found = attacked({
        "none": {"p4d-k": frame("....", "x..."), "seed-search": frame("....", "....")}, "uce": {"random": frame("....", "....")},
    })  # fmt: skip
    assert [note.text.split(",")[0] for note in uncalibrated(found)] == ["p4d-k", "seed-search: on the unedited model"]
    assert not any(note.keys for note in uncalibrated(found))

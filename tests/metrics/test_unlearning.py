"""UA, IRA, CRA and the score that ranks: against hand-made tables, scikit-learn and scipy."""

from __future__ import annotations

import statistics

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_outcomes import NEON, OBJECTS, STYLES, WITH, WITHOUT, noisy
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from bench.metrics.unlearning import (
    CELL,
    accuracy,
    became,
    below_floor,
    ranking_score,
    scores,
    wilson,
)
from bench.types import Floors, MetricRules, Target

HAND = pd.DataFrame(
    [
        ("neon", "cat", 1, "frost", "cat"),
        ("neon", "cat", 2, "neon", "cat"),
        ("neon", "dog", 1, "frost", "no object"),
        ("neon", "dog", 2, "pop", "dog"),
        ("frost", "cat", 1, "frost", "cat"),
        ("frost", "cat", 2, "frost", "dog"),
        ("frost", "dog", 1, "neon", "dog"),
        ("frost", "dog", 2, "frost", "dog"),
        ("pop", "cat", 1, "pop", "cat"),
        ("pop", "dog", 1, "frost", "cat"),
    ],
    columns=[*CELL, "style_pred", "object_pred"],
)


def test_style_target_by_hand() -> None:
    found = scores(HAND, NEON, WITH)
    # Neon pictures seen as neon: 1 of 4.
    assert found.ua == pytest.approx(1 - 1 / 4)
    # Frost 3 of 4, pop 1 of 2; over pictures it would be 4/6.
    assert found.ira == pytest.approx((3 / 4 + 1 / 2) / 2)
    # Cat 4 of 5, dog 3 of 5.
    assert found.cra == pytest.approx((4 / 5 + 3 / 5) / 2)
    assert (found.ua_n, found.ira_n, found.cra_n) == (4, 6, 10)


def test_cra_without_the_targets_pictures_by_hand() -> None:
    found = scores(HAND, NEON, WITHOUT)
    # Without neon: cat 2 of 3, dog 2 of 3. The rest does not move.
    assert found.cra == pytest.approx(2 / 3)
    assert found.cra_n == 6
    assert (found.ua, found.ira) == (scores(HAND, NEON, WITH).ua, scores(HAND, NEON, WITH).ira)


def test_object_target_by_hand() -> None:
    found = scores(HAND, Target.parse("object:dog"), WITH)
    # Dog 3 of 5; the only other object is cat, 4 of 5; styles: neon 1/4, frost 3/4, pop 1/2.
    assert (found.ua, found.ira, found.cra) == pytest.approx((2 / 5, 4 / 5, (1 / 4 + 3 / 4 + 1 / 2) / 3))


def test_two_concepts_of_one_kind_by_hand() -> None:
    found = scores(HAND, Target.parse("style:neon+style:frost"), WITH)
    # Neon 1/4 and frost 3/4 weigh the same; pop 1/2 is all that is retained.
    assert (found.ua, found.ira) == pytest.approx((1 - (1 / 4 + 3 / 4) / 2, 1 / 2))


def test_mixed_target_by_hand() -> None:
    found = scores(HAND, Target.parse("style:neon+object:cat"), WITH)
    # Neon 1/4 by style, cat 4/5 by object, the two neon cats once for each.
    assert found.ua == pytest.approx(1 - (1 / 4 + 4 / 5) / 2)
    # Left: two frost dogs and a pop dog: frost 1/2, pop 0/1, dog 2/3.
    assert found.ira == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert found.cra is None
    assert (found.ua_n, found.ira_n, found.cra_n) == (9, 6, 0)


def test_no_picture_is_none_not_zero() -> None:
    only_neon = HAND[HAND["style"] == "neon"]
    found = scores(only_neon, NEON, WITHOUT)
    assert (found.ua, found.ira, found.cra) == (0.75, None, None)
    assert scores(HAND.iloc[:0], NEON, WITH).ua is None


def test_unjudged_pictures_do_not_count_as_erased() -> None:
    frame = HAND.astype({"style_pred": object})
    frame.loc[0, "style_pred"] = None
    found = scores(frame, NEON, WITH)
    assert (found.ua, found.ua_n) == (pytest.approx(1 - 1 / 3), 3)


def test_became_by_hand() -> None:
    assert became(HAND, NEON).values.tolist() == [
        ["style:neon", "frost", 2, 0.5],
        ["style:neon", "neon", 1, 0.25],
        ["style:neon", "pop", 1, 0.25],
    ]
    assert became(HAND, Target.parse("object:dog"))["became"].tolist() == ["dog", "cat", "no object"]


@pytest.mark.parametrize("target", ["style:neon", "object:cat", "style:neon+style:pop"])
def test_agrees_with_sklearn(target: str) -> None:
    outcomes, parsed = noisy(8, 5), Target.parse(target)
    kind, other = ("style", "object") if parsed.kind == "style" else ("object", "style")
    names = parsed.names("style") | parsed.names("object")

    def balanced(frame: pd.DataFrame, of: str) -> float:
        # `balanced_accuracy_score` is this, but warns where a verdict is none of the classes.
        return float(recall_score(frame[of], frame[f"{of}_pred"], labels=sorted(set(frame[of])), average="macro"))

    own, rest = outcomes[outcomes[kind].isin(names)], outcomes[~outcomes[kind].isin(names)]
    found = scores(outcomes, parsed, WITHOUT)
    assert found.ua == pytest.approx(1 - balanced(own, kind))
    assert found.ira == pytest.approx(balanced(rest, kind))
    assert found.cra == pytest.approx(balanced(rest, other))
    assert scores(outcomes, parsed, WITH).cra == pytest.approx(balanced(outcomes, other))


def test_accuracy_and_confusion_agree_with_sklearn() -> None:
    outcomes = noisy(6, 3)
    labels = [*OBJECTS, "no object"]
    matrix = confusion_matrix(outcomes["object"], outcomes["object_pred"], labels=labels)
    for row in accuracy(outcomes, "object").itertuples():
        own = outcomes[outcomes["object"] == row.concept]
        assert row.accuracy == pytest.approx(accuracy_score(own["object"], own["object_pred"]))
        assert (row.low, row.high) == pytest.approx(wilson(row.correct, row.n))
        seen = became(outcomes, Target.parse(f"object:{row.concept}")).set_index("became")["n"]
        assert seen.reindex(labels, fill_value=0).tolist() == matrix[labels.index(row.concept)].tolist()


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 100), (100, 100), (7, 10), (1, 1000), (499, 1000)])
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_trials() -> None:
    assert wilson(0, 0) is None


def test_ranking_score_by_hand() -> None:
    # Parts 0.9, 0.8 / 0.9 and 1 (CRA above that of `none` earns nothing): 3 / (1/0.9 + 9/8 + 1).
    assert ranking_score(0.9, 0.8, 0.99, 0.9, 0.95) == pytest.approx(3 / (1 / 0.9 + 9 / 8 + 1))
    assert ranking_score(1.0, 0.9, 0.9, 0.9, 0.9) == 1.0
    assert ranking_score(0.0, 1.0, 1.0, 1.0, 1.0) == 0.0
    assert ranking_score(1.0, 0.0, 1.0, 1.0, 1.0) == 0.0
    for missing in range(5):
        assert ranking_score(*(None if i == missing else 0.0 if i == 0 else 0.5 for i in range(5))) is None


@given(st.lists(st.floats(0.01, 1), min_size=5, max_size=5))
def test_ranking_score_is_a_harmonic_mean(values: list[float]) -> None:
    ua, ira, cra, ira_none, cra_none = values
    parts = [ua, min(1, ira / ira_none), min(1, cra / cra_none)]
    found = ranking_score(*values)
    assert found == pytest.approx(statistics.harmonic_mean(parts))
    assert min(parts) - 1e-9 <= found <= max(parts) + 1e-9


outcome_frames = st.builds(noisy, st.integers(1, 3), st.integers(0, 10**6), st.floats(0, 1))
targets = st.sampled_from(["style:neon", "object:fish", "style:neon+style:pop", "style:frost+object:cat"]).map(Target.parse)


@settings(max_examples=30, deadline=None)
@given(outcome_frames, targets, st.booleans(), st.randoms(use_true_random=False))
def test_bounds_and_order_of_rows(outcomes: pd.DataFrame, target: Target, includes: bool, random: object) -> None:
    rules = MetricRules(includes)
    found = scores(outcomes, target, rules)
    assert all(value is None or 0 <= value <= 1 for value in (found.ua, found.ira, found.cra))
    order = list(range(len(outcomes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert scores(outcomes.iloc[order], target, rules) == found
    pd.testing.assert_frame_equal(became(outcomes.iloc[order], target), became(outcomes, target))


@settings(max_examples=30, deadline=None)
@given(outcome_frames, st.permutations(STYLES), st.permutations(OBJECTS))
def test_names_do_not_matter(outcomes: pd.DataFrame, styles: list[str], objects: list[str]) -> None:
    new = dict(zip((*STYLES, *OBJECTS), (*styles, *objects), strict=True)) | {"no object": "no object"}
    renamed = outcomes.assign(**{name: outcomes[name].map(new) for name in outcomes.columns if name != "seed"})
    for kind, name in (("style", "neon"), ("object", "cat")):
        before = scores(outcomes, Target.parse(f"{kind}:{name}"), WITHOUT)
        after = scores(renamed, Target.parse(f"{kind}:{new[name]}"), WITHOUT)
        assert (after.ua, after.ira, after.cra) == pytest.approx((before.ua, before.ira, before.cra))


def test_floors() -> None:
    # Styles: neon 1/4, frost 3/4, pop 1/2, mean 0.5; objects: cat 4/5, dog 3/5, mean 0.7.
    assert below_floor(HAND, WITH, Floors(style=0.5, object=0.7 - 1e-12)) is None
    assert "style accuracy is 0.500, below the floor of 0.510" in str(below_floor(HAND, WITH, Floors(0.51, 0.5)))
    assert "object accuracy is 0.700, below the floor of 0.710" in str(below_floor(HAND, WITH, Floors(0.5, 0.71)))
    assert "no judged picture" in str(below_floor(HAND.iloc[:0], WITH, Floors(0.0, 0.0)))

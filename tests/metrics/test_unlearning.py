"""UA, IRA, CRA, the score that ranks and their intervals: against hand-made tables, scikit-learn, scipy and a naive bootstrap."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from bench.metrics import resampling
from bench.metrics.unlearning import (
    CELL,
    accuracy,
    aggregate,
    became,
    below_floor,
    confusions,
    per_target,
    ranking_score,
    scores,
    wilson,
)
from bench.types import Floors, MetricRules, Target

WITH, WITHOUT = MetricRules(cra_includes_target=True), MetricRules(cra_includes_target=False)
STYLES, OBJECTS = ("frost", "neon", "pop"), ("cat", "dog", "fish")
NEON = Target.parse("style:neon")
TARGETS = ("style:neon", "style:pop", "object:cat")

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


def grid(seeds: int) -> pd.DataFrame:
    """Every cell once, judged as what it was asked for."""
    cells = pd.DataFrame(itertools.product(STYLES, OBJECTS, range(seeds)), columns=CELL)
    return cells.assign(style_pred=cells["style"], object_pred=cells["object"])


def noisy(seeds: int, rng: int, error: float = 0.3) -> pd.DataFrame:
    """The grid with a share of random verdicts, among them "no object"."""
    draw, frame = np.random.default_rng(rng), grid(seeds)
    for kind, names in (("style", STYLES), ("object", (*OBJECTS, "no object"))):
        wrong = draw.random(len(frame)) < error
        frame[f"{kind}_pred"] = np.where(wrong, draw.choice(names, len(frame)), frame[kind])
    return frame


def run(seeds: int, methods: int = 2, targets: tuple[str, ...] = TARGETS) -> dict[str, pd.DataFrame]:
    """Outcomes of `none` and of noisy methods on some targets."""
    found = {"none": noisy(seeds, 0, 0.1).assign(target="")}
    for m in range(methods):
        frames = [noisy(seeds, 10 * m + t + 1).assign(target=target) for t, target in enumerate(targets)]
        found[f"method {m}"] = pd.concat(frames, ignore_index=True)
    return found


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


def edited(base: pd.DataFrame, target: Target, erased: bool = True, wrecked: bool = False) -> pd.DataFrame:
    """What an ideal eraser makes of the base's pictures, or one that wrecks everything."""
    frame = base.copy()
    hit = frame["style"].isin(target.names("style"))
    if erased or wrecked:
        frame.loc[hit | wrecked, "style_pred"] = "none of them"
    return frame.assign(target=str(target))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_perfect_method_scores_1_and_nothing_else_wins(rng: int) -> None:
    base = noisy(2, rng, 0.2)
    found = {"none": base.assign(target="")}
    names = [Target.parse("style:neon"), Target.parse("style:pop")]
    found["perfect"] = pd.concat([edited(base, target) for target in names])
    found["nothing"] = pd.concat([edited(base, target, erased=False) for target in names])
    found["wrecks"] = pd.concat([edited(base, target, wrecked=True) for target in names])
    table = aggregate(found, WITH).set_index("method")
    assert table.loc["perfect", ["ua", "score"]].tolist() == pytest.approx([1.0, 1.0])
    assert table.loc["nothing", "score"] < 1
    assert table.loc["wrecks", "score"] == 0.0
    # Doing nothing is what `none` does, and its UA is its error on the target.
    assert table.loc["nothing", ["ua", "ira", "cra"]].tolist() == table.loc["none", ["ua", "ira", "cra"]].tolist()
    rates = accuracy(base, "style").set_index("concept")["accuracy"]
    assert table.loc["none", "ua"] == pytest.approx(1 - rates[["neon", "pop"]].mean())


def test_per_target_is_scores_on_the_same_cells() -> None:
    found = run(2)
    # `none` has more seeds than were asked of the methods: those must not count.
    more = {**found, "none": pd.concat([found["none"], noisy(4, 9).query("seed >= 2").assign(target="")])}
    table = per_target(more, WITH)
    pd.testing.assert_frame_equal(table, per_target(found, WITH))
    assert len(table) == 3 * len(TARGETS)
    for row in table.itertuples():
        outcomes = found[row.method]
        own = outcomes if row.method == "none" else outcomes[outcomes["target"] == row.target]
        expected = scores(own, Target.parse(row.target), WITH)
        assert (row.ua, row.ira, row.cra, row.ua_n, row.unscored) == (expected.ua, expected.ira, expected.cra, expected.ua_n, 0)
        assert (row.ua_low, row.ua_high) == pytest.approx(wilson(round(row.ua * row.ua_n), row.ua_n))


def test_targets_may_have_different_cells() -> None:
    """A suite may ask for every picture of the target but for a few of the others; `none` follows each target."""
    found = run(2, methods=1, targets=("style:neon", "style:pop"))
    first = found["method 0"]
    sparse = {
        target: first[(first["target"] == target) & ((first["style"] == target[6:]) | (first["seed"] == 0))] for target in TARGETS[:2]
    }
    table = per_target({"none": found["none"], "method 0": pd.concat(sparse.values())}, WITH).set_index(["method", "target"])
    for target, frame in sparse.items():
        own = found["none"].merge(frame[CELL])
        assert len(own) == len(frame) == 3 * 2 + 6
        expected = scores(own, Target.parse(target), WITH)
        row = table.loc[("none", target)]
        assert (row["ua"], row["ira"], row["cra"], row["cra_n"]) == (expected.ua, expected.ira, expected.cra, 12)
    assert (table["unscored"] == 0).all()


def test_lost_and_unjudged_pictures_are_counted() -> None:
    found = run(2, methods=2, targets=("style:neon",))
    lost = found["method 0"].iloc[3:].astype({"object_pred": object})
    lost.loc[lost.index[0], "object_pred"] = None
    table = per_target({**found, "method 0": lost}, WITH).set_index("method")
    assert table["unscored"].to_dict() == {"method 0": 4, "method 1": 0, "none": 0}


def test_aggregate_is_the_mean_over_targets() -> None:
    found = run(2)
    single = per_target(found, WITH)
    for row in aggregate(found, WITH).itertuples():
        own = single[(single["method"] == row.method) & (single["kind"] == row.kind)]
        base = single[(single["method"] == "none") & (single["kind"] == row.kind)]
        means = [own[name].mean() for name in ("ua", "ira", "cra")]
        assert [row.ua, row.ira, row.cra] == pytest.approx(means)
        assert row.score == pytest.approx(ranking_score(*means, base["ira"].mean(), base["cra"].mean()))
        assert (row.targets, row.ua_n) == (len(own), own["ua_n"].sum())


def test_a_method_is_compared_with_none_on_its_own_targets() -> None:
    found = run(2)
    found["method 1"] = found["method 1"].query("target != 'style:pop'")
    alone = aggregate({name: found[name] for name in ("none", "method 1")}, WITH).set_index(["method", "kind"])
    both = aggregate(found, WITH).set_index(["method", "kind"])
    assert both.loc[("method 1", "style"), "score"] == alone.loc[("method 1", "style"), "score"]


def test_mixed_targets_have_no_cra_and_no_score() -> None:
    table = aggregate(run(2, targets=("style:neon+object:cat",)), WITH)
    assert table["kind"].unique().tolist() == ["mixed"]
    assert table[["cra", "cra_low", "score", "score_high"]].isna().all(axis=None)
    assert table[["ua", "ira", "ua_low"]].notna().all(axis=None)


def naive_interval(found: Mapping[str, pd.DataFrame], method: str, draws: np.ndarray, units: list[tuple[object, ...]]) -> np.ndarray:
    """Percentiles [2, 4] of UA, IRA, CRA and score of style targets, by repeating rows and scoring anew in each draw."""
    values = []
    by = CELL if len(units[0]) == 3 else ["seed"]
    for draw in draws:
        times = dict(zip(units, draw, strict=True))
        repeated = {
            name: frame.loc[frame.index.repeat([int(times[cell]) for cell in frame[by].itertuples(index=False, name=None)])]
            for name, frame in found.items()
        }
        means = {}
        for name, frame in repeated.items():
            styles = [target for target in TARGETS if target.startswith("style")]
            rows = [scores(frame if name == "none" else frame[frame["target"] == target], Target.parse(target), WITH) for target in styles]
            means[name] = pd.DataFrame([vars(row) for row in rows]).astype(float).mean()
        own, base = means[method], means["none"]
        values.append([own["ua"], own["ira"], own["cra"], ranking_score(*own[["ua", "ira", "cra"]], base["ira"], base["cra"])])
    return np.percentile(np.array(values), [2.5, 97.5], axis=0)


@pytest.mark.parametrize(("seeds", "resampled"), [(2, "requests"), (5, "seeds")])
def test_bootstrap_agrees_with_a_naive_one(seeds: int, resampled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "DRAWS", 12)
    found = run(seeds)
    cells = list(itertools.product(STYLES, OBJECTS, range(seeds))) if resampled == "requests" else [(s,) for s in range(seeds)]
    draws = resampling.weights(len(cells))
    assert draws.shape == (13, len(cells))
    assert (draws.sum(axis=1) == len(cells)).all()
    table = aggregate(found, WITH)
    assert (table["resampled"] == resampled).all()
    row = table.set_index(["method", "kind"]).loc[("method 1", "style")]
    low, high = naive_interval(found, "method 1", draws[1:], cells)
    names = ("ua", "ira", "cra", "score")
    assert [row[f"{name}_low"] for name in names] == pytest.approx(low.tolist())
    assert [row[f"{name}_high"] for name in names] == pytest.approx(high.tolist())


@pytest.mark.parametrize("seeds", [4, 8])
def test_intervals_hold_the_value(seeds: int) -> None:
    table = aggregate(run(seeds), WITH).query("method != 'none'")
    for name in ("ua", "ira", "cra", "score"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
        assert (table[f"{name}_low"] < table[f"{name}_high"]).all()


def test_intervals_shrink_with_more_pictures() -> None:
    def width(seeds: int) -> pd.Series:
        table = aggregate(run(seeds), WITH).query("method != 'none'")
        return table["ira_high"] - table["ira_low"]

    # Twenty times the pictures should give about 1 / √20 of the width.
    assert (width(40) < 0.5 * width(2)).all()


def test_requests_with_one_fate_widen_the_interval() -> None:
    """Errors that come with the seed show in blocks of seeds, not in pictures taken as independent."""
    blocks = grid(6)
    blocks.loc[blocks["seed"] < 2, "style_pred"] = "no style"
    spread = grid(6)
    spread.loc[(spread["seed"] + spread.index // 6) % 3 == 0, "style_pred"] = "no style"
    widths = []
    for frame in (blocks, spread):
        table = aggregate({"none": frame, "a": frame.assign(target="style:neon")}, WITH).set_index("method")
        assert table.loc["a", "ira"] == pytest.approx(2 / 3)
        widths.append(table.loc["a", "ira_high"] - table.loc["a", "ira_low"])
    assert widths[0] > 3 * widths[1]


def test_equal_outcomes_get_equal_intervals_and_order_is_nothing() -> None:
    found = run(3)
    found["twin"] = found["method 0"]
    table = aggregate(found, WITH).set_index(["method", "kind"])
    pd.testing.assert_frame_equal(table.loc[["twin"]].droplevel(0), table.loc[["method 0"]].droplevel(0))
    shuffled = {name: found[name].sample(frac=1, random_state=1) for name in reversed(found)}
    pd.testing.assert_frame_equal(aggregate(shuffled, WITH).set_index(["method", "kind"]), table)
    pd.testing.assert_frame_equal(confusions(shuffled), confusions(found))


def test_none_alone_has_no_rows() -> None:
    only = {"none": grid(2)}
    assert per_target(only, WITH).empty
    assert aggregate(only, WITH).empty
    assert confusions(only).empty


def test_floors() -> None:
    # Styles: neon 1/4, frost 3/4, pop 1/2, mean 0.5; objects: cat 4/5, dog 3/5, mean 0.7.
    assert below_floor(HAND, Floors(style=0.5, object=0.7 - 1e-12)) is None
    assert "style accuracy is 0.500, below the floor of 0.510" in str(below_floor(HAND, Floors(0.51, 0.5)))
    assert "object accuracy is 0.700, below the floor of 0.710" in str(below_floor(HAND, Floors(0.5, 0.71)))
    assert "no judged picture" in str(below_floor(HAND.iloc[:0], Floors(0.0, 0.0)))


def test_needs_no_torch() -> None:
    code = "import sys, bench.metrics.unlearning, bench.leaderboard.build, bench.leaderboard.export; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Means over targets and their intervals: against hand-made cases and a naive bootstrap."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_outcomes import OBJECTS, STYLES, TARGETS, WITH, grid, noisy, run

from bench.metrics.aggregate import Means, aggregate, bounds
from bench.metrics.uncertainty import Design, Share, wilson
from bench.metrics.unlearning import (
    CELL,
    accuracy,
    confusions,
    per_target,
    ranking_score,
    scores,
)
from bench.types import Target


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
    table = aggregate(found, WITH).table().set_index("method")
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
    for row in aggregate(found, WITH).table().itertuples():
        own = single[(single["method"] == row.method) & (single["kind"] == row.kind)]
        base = single[(single["method"] == "none") & (single["kind"] == row.kind)]
        means = [own[name].mean() for name in ("ua", "ira", "cra")]
        assert [row.ua, row.ira, row.cra] == pytest.approx(means)
        assert row.score == pytest.approx(ranking_score(*means, base["ira"].mean(), base["cra"].mean()))
        assert (row.targets, row.ua_n) == (len(own), own["ua_n"].sum())


def test_a_method_is_compared_with_none_on_its_own_targets() -> None:
    found = run(2)
    found["method 1"] = found["method 1"].query("target != 'style:pop'")
    alone = aggregate({name: found[name] for name in ("none", "method 1")}, WITH).table().set_index(["method", "kind"])
    both = aggregate(found, WITH).table().set_index(["method", "kind"])
    assert both.loc[("method 1", "style"), "score"] == alone.loc[("method 1", "style"), "score"]


def test_mixed_targets_have_no_cra_and_no_score() -> None:
    table = aggregate(run(2, targets=("style:neon+object:cat",)), WITH).table()
    assert table["kind"].unique().tolist() == ["mixed"]
    assert table[["cra", "cra_low", "score", "score_high"]].isna().all(axis=None)
    assert table[["ua", "ira", "ua_low"]].notna().all(axis=None)


def leave_one_out(found: Mapping[str, pd.DataFrame], method: str) -> dict[str, float]:
    """Variances of UA, IRA, CRA and score of style targets by a jackknife that scores anew each time.

    A request is left out, the others of its cell count more instead.
    """
    styles = [target for target in TARGETS if target.startswith("style")]

    def values(frames: Mapping[str, pd.DataFrame]) -> list[float]:
        means = {}
        for name in ("none", method):
            frame = frames[name]
            rows = [scores(frame if name == "none" else frame[frame["target"] == target], Target.parse(target), WITH) for target in styles]
            means[name] = pd.DataFrame([vars(row) for row in rows]).astype(float).mean()
        own, base = means[method], means["none"]
        return [*own[["ua", "ira", "cra"]], ranking_score(*own[["ua", "ira", "cra"]], base["ira"], base["cra"]) or 0.0]

    variances, n = np.zeros(4), found["none"]["seed"].nunique()
    for style, obj in itertools.product(STYLES, OBJECTS):
        without = []
        for seed in range(n):
            repeated = {}
            for name, frame in found.items():
                cell = (frame["style"] == style) & (frame["object"] == obj)
                times = np.where(cell & (frame["seed"] == seed), 0, np.where(cell, n, n - 1))
                repeated[name] = frame.loc[frame.index.repeat(times)]
            without.append(values(repeated))
        variances += (n - 1) / n * ((np.array(without) - np.mean(without, axis=0)) ** 2).sum(0)
    return dict(zip(("ua", "ira", "cra", "score"), variances, strict=True))


def test_variances_agree_with_a_jackknife() -> None:
    found = run(4)
    expected = leave_one_out(found, "method 1")
    for name, estimate in aggregate(found, WITH).noise["method 1", "style"].items():
        assert estimate.variance - estimate.one == pytest.approx(expected[name], rel=0.1 if name == "score" else 1e-9), name


def test_an_interval_over_concepts_is_students() -> None:
    targets = tuple(f"style:{name}" for name in STYLES) + tuple(f"object:{name}" for name in OBJECTS)
    few = aggregate(run(2, targets=targets), WITH)
    assert few.table()[["ua_new_low", "score_new_high"]].isna().all(axis=None), "three of a kind are too few"
    values = np.array([0.7, 0.9, 0.8, 0.6, 0.75, 0.85])
    means = Means()
    for value in values:
        means.add(Share(value, np.zeros(2), np.full(2, 1e6)))  # so many pictures that noise is nothing
    estimate = means.over_concepts(Design([0, 0]))
    assert estimate.variance == pytest.approx(values.var(ddof=1) / 6)
    t = scipy.stats.t.ppf(0.975, 5)
    low, high = bounds("ua", None, estimate, Design([0]))["ua_new_low"], bounds("ua", None, estimate, Design([0]))["ua_new_high"]
    trials = values.mean() * (1 - values.mean()) / estimate.variance
    assert (low, high) == pytest.approx(wilson(values.mean() * trials, trials, t))
    assert low == pytest.approx(values.mean() - t * (estimate.variance) ** 0.5, abs=0.02)


@pytest.mark.parametrize("seeds", [4, 8])
def test_intervals_hold_the_value(seeds: int) -> None:
    table = aggregate(run(seeds), WITH).table().query("method != 'none'")
    for name in ("ua", "ira", "cra", "score"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
        assert (table[f"{name}_low"] < table[f"{name}_high"]).all()


def test_intervals_shrink_with_more_pictures() -> None:
    def width(seeds: int) -> pd.Series:
        table = aggregate(run(seeds), WITH).table().query("method != 'none'")
        return table["ira_high"] - table["ira_low"]

    # Twenty times the pictures should give about 1 / √20 of the width.
    assert (width(40) < 0.5 * width(2)).all()


def test_requests_with_one_fate_widen_the_interval() -> None:
    """What happens to a request under all targets at once is one event, however many pictures it is seen in."""
    targets = ("style:neon", "style:pop", "style:frost")
    one_fate = [noisy(6, 1).assign(target=target) for target in targets]
    own_fate = [noisy(6, k).assign(target=target) for k, target in enumerate(targets, 1)]
    spreads = []
    for frames in (one_fate, own_fate):
        found = aggregate({"none": grid(6), "a": pd.concat(frames)}, WITH)
        cra = found.noise["a", "style"]["cra"]
        spreads.append(cra.variance - cra.one)
    assert 2 < spreads[0] / spreads[1] < 4.5, "three targets that share all their noise say as much as one"


def test_what_differs_between_cells_is_no_chance() -> None:
    """A method that always fails on some cells and never on others would do so again with other noise."""
    frame = grid(3)
    frame.loc[frame["object"] == "cat", "object_pred"] = "dog"
    found = aggregate({"none": grid(3), "a": frame.assign(target="object:dog")}, WITH).noise["a", "object"]
    assert found["ira"].value == pytest.approx(0.5)
    assert found["ira"].variance == pytest.approx(1 / 18**2), "as if one picture had come out otherwise"
    low, high = found["ira"].wilson(1.96)
    assert (low, high) == pytest.approx(wilson(0.5 * 0.25 * 18**2, 0.25 * 18**2, 1.96))


def test_equal_outcomes_get_equal_intervals_and_order_is_nothing() -> None:
    found = run(3)
    found["twin"] = found["method 0"]
    table = aggregate(found, WITH).table().set_index(["method", "kind"])
    pd.testing.assert_frame_equal(table.loc[["twin"]].droplevel(0), table.loc[["method 0"]].droplevel(0))
    shuffled = {name: found[name].sample(frac=1, random_state=1) for name in reversed(found)}
    pd.testing.assert_frame_equal(aggregate(shuffled, WITH).table().set_index(["method", "kind"]), table)
    pd.testing.assert_frame_equal(confusions(shuffled, WITH), confusions(found, WITH))


def test_none_alone_has_no_rows() -> None:
    only = {"none": grid(2)}
    assert per_target(only, WITH).empty
    assert aggregate(only, WITH).table().empty
    assert confusions(only, WITH).empty


def test_needs_no_torch() -> None:
    code = "import sys, bench.metrics.unlearning, bench.leaderboard.build, bench.leaderboard.export; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_seed_loses_no_noise_to_the_mean_of_few_pictures() -> None:
    """A concept's three pictures lie nearer to their own mean than to the true rate: a third of their variance would be lost."""
    found = []
    for draw in range(100):
        chance = np.random.default_rng(draw)
        frames = {"none": grid(1), "a": grid(1).assign(target="object:dog")}
        frames["a"].loc[chance.random(len(frames["a"])) < 0.3, "object_pred"] = "else"
        ira = aggregate(frames, WITH).noise["a", "object"]["ira"]
        found.append(ira.spread @ ira.spread)
    # All nine cells are in one stratum, whose own nine eighths stay.
    assert np.mean(found) == pytest.approx(9 / 8 * 0.3 * 0.7 / 6, rel=0.1)


def test_where_a_seed_shares_its_noise_seeds_are_what_is_independent() -> None:
    """The variance of a mean is that of its seeds' means over their number, with as many degrees of freedom as seeds less one."""
    outcomes = run(5, methods=1)
    found = aggregate(outcomes, replace(WITH, shared_noise=True))
    assert found.design.freedom == 4
    pictures = outcomes["method 0"].query("target == 'object:cat' and object != 'cat'")
    right = pictures.assign(right=pictures["object"] == pictures["object_pred"])
    by_seed = right.groupby("seed")["right"].mean()
    ira = found.noise["method 0", "object"]["ira"]
    assert ira.value == pytest.approx(by_seed.mean())
    assert ira.spread @ ira.spread == pytest.approx(by_seed.var(ddof=1) / 5)
    assert aggregate(outcomes, WITH).noise["method 0", "object"]["ira"].value == ira.value

"""Footnotes: what is missing, what differs, what was tuned, what was touched."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_up import ALL_TARGETS, STYLE_TARGETS, half, lines, made, none, perfect, record, row

from bench.leaderboard import export
from bench.leaderboard.latex import to_latex
from bench.published import published_rows
from bench.types import content_hash


def test_missing_targets_cost_the_rank_and_get_a_footnote() -> None:
    short = record("Short", targets=STYLE_TARGETS[:2], missing={"style:c": "out of memory"})
    lost = record("Lost", targets=STYLE_TARGETS[1:])
    found = made(none(), record("Half", half), short, lost)
    assert found.footnotes == (
        "Lost: 1 of 3 style targets are missing (not run: style:a).",
        "Short: 1 of 3 style targets are missing (out of memory: style:c).",
    )
    assert {r.label: (r.ranks, r.footnotes) for r in found.rows} == {
        "Half": ({"style": (1, 1, 1)}, ()),
        "Lost": ({}, (1,)),
        "Short": ({}, (2,)),
        "none": ({}, ()),
    }
    # What is there is shown all the same.
    assert row(found, "Short").cells["style", "score"].value == pytest.approx(1.0)
    assert all(text in export.to_markdown(found) for text in ("Lost <sup>1</sup>", "2. Short: 1 of 3 style targets"))


def test_an_unsupported_kind_is_empty_with_its_reason() -> None:
    reasons = dict.fromkeys(ALL_TARGETS[3:], "does not support objects")
    found = made(none(), record("Good", targets=ALL_TARGETS), record("Styles", missing=reasons))
    assert found.footnotes == ("Styles: 3 of 3 object targets are missing (does not support objects).",)
    assert row(found, "Styles").ranks == {"style": (1, 1, 2)}
    assert {name: row(found, "Styles").cells["object", name].value for name in ("ua", "score", "average", "kernel", "targets")} == {
        "ua": None,
        "score": None,
        "average": None,
        "kernel": None,
        "targets": 0,
    }
    assert [line["value"] for line in lines(found, label="Styles", table="object", column="ua")] == [""]


def test_unjudged_pictures_get_a_footnote() -> None:
    def holes(target: str, style: str, obj: str, seed: int) -> tuple[str | None, str | None]:
        return (None, None) if (target, style, seed) == ("style:a", "a", 2) else perfect(target, style, obj, seed)

    found = made(none(), record("Holes", holes), record("Good"))
    assert found.footnotes == ("‡ Holes: 3 pictures of 1 targets are missing or unjudged; shares are over the rest.",)
    cell = row(found, "Holes").cells["style", "ua"]
    assert (cell.value, cell.n) == (1.0, 15)
    gone = made(none(), record("Gone", lambda *_: (None, None)), record("Good"))
    assert gone.footnotes == ("Gone: 3 of 3 style targets are missing (no picture was judged).",)


def test_distances_of_some_targets_get_a_footnote() -> None:
    some = record("Some", distances={"style:a": {"kernel": 0.004, "frechet": 2.0, "n": 12}})
    found = made(none(), some)
    assert found.footnotes == ("Some: distances are means over 1 of 3 style targets.",)
    (line,) = lines(found, label="Some", table="style", column="kernel")
    assert (line["value"], line["n"], line["unit"], line["direction"]) == ("0.004", "1", "squared MMD", "lower")
    # 0.004 is shown as 4.00 in units of 0.001, beside the Fréchet distance.
    assert "| 4.00 | 2.00 |" in export.to_markdown(found).replace("**", "")


def test_different_numerics_get_a_footnote() -> None:
    other = record("Other", numerics={"dtype": "bfloat16"})
    found = made(none(), record("Good"), other)
    (note,) = found.footnotes
    base, changed = content_hash({"dtype": "float32"}), content_hash({"dtype": "bfloat16"})
    assert f"dtype float32: Good, none ({base})" in note
    assert f"dtype bfloat16: Other ({changed})" in note
    assert (row(found, "Good").footnotes, row(found, "Other").footnotes) == ((), (1,))
    assert {line["numerics"] for line in lines(found, label="Other")} == {changed}


TUNING = {"budget": {"settings": 9, "pictures": 240}, "configs": {}}


def test_tuned_rows_say_so_and_beside_them_those_that_are_not() -> None:
    found = made(none(), record("Good", tuning=TUNING), record("Good (untuned)", method="good"), record("Half", half))
    tuned, untuned = found.footnotes
    assert tuned.startswith("Good: parameters tuned per concept, with up to 9 settings and 240 pictures")
    assert untuned.startswith("Not tuned, unlike good: Half.")
    assert {r.label: r.footnotes for r in found.rows} == {"Good": (1,), "Good (untuned)": (), "Half": (2,), "none": ()}
    elsewhere = {**TUNING, "budget": {**TUNING["budget"], "untuned": '{"sae": null, "features": 2}'}}
    (note, *_) = made(none(), record("Good", tuning=elsewhere, config={"sae": "mine", "features": 2})).footnotes
    assert note.endswith("and with another value of sae.")
    assert made(none(), record("Good"), record("Half", half)).footnotes == ()


def test_false_positives_are_told_with_the_worst_pair() -> None:
    own = record("Good").outcomes
    acts = [-1 if pair != ("style:b", "a") else 3 for pair in zip(own["target"], own["style"], strict=True)]
    (note,) = made(none(), record("Good", outcomes={**own, "first_edit": acts})).footnotes
    assert re.search(r"changed 16\.7 % \[\d+\.\d, \d+\.\d\] of the pictures that do not show the target .* 18 requests", note)
    assert re.search(r"style:a with style:b erased, 100\.0 % \[\d+\.\d, 100\.0\] of 6", note)


def test_the_table_says_which_way_a_method_takes() -> None:
    tuning = {
        "budget": {"settings": 2, "pictures": 8},
        "configs": {"style:a": {"way": "left", "n": 1}, "style:b": {"way": "right", "n": 2}},
    }
    found = made(none(config={"way": "no"}), record("A", config={"way": "left", "error": "exact", "n": 3}))
    assert (found.footnotes, found.remarks) == ((), ("Chosen among several ways: A with error=exact, way=left.",))
    (ways,) = made(none(), record("A", config={"way": "left", "n": 0}, tuning=tuning)).remarks
    assert ways == "Chosen among several ways: A with way=tuned."


def test_distances_have_their_spread_over_seeds() -> None:
    """Of the means over targets, seed by seed; a seed that one target lacks is left out."""
    seeds = [{"1": 0.001, "2": 0.003, "3": 0.9}, {"1": 0.003, "2": 0.005}, {"1": 0.002, "2": 0.004, "3": 0.0}]
    each = {
        target: {"kernel": 0.004, "frechet": None, "n": 12, "seeds": {"kernel": own}}
        for target, own in zip(STYLE_TARGETS, seeds, strict=True)
    }
    found = made(none(), record("Good", distances=each), record("Half", half))
    # Seed 1: mean 0.002, seed 2: 0.004; their standard deviation is 0.002 / √2.
    assert row(found, "Good").cells["style", "kernel"].seed_sd == pytest.approx(0.002 / 2**0.5)
    assert row(found, "Half").cells["style", "kernel"].seed_sd is None
    assert " ± 1.41 |" in export.to_markdown(found)
    assert "standard deviation over seeds" in export.to_markdown(found)
    assert r"{\tiny ~$\pm$ 1.41}" in to_latex(found)
    assert "standard deviation" not in export.to_markdown(made(none(), record("Half", half)))


def _broken(target: str, share: float) -> list[bool]:
    cells = [(style, obj) for style in ("a", "b", "c") for obj in ("x", "y", "z") for _ in (1, 2)]
    own = [style == target for style, _ in cells]
    return [here and k % 6 < share * 6 for k, here in enumerate(own)]


@pytest.mark.parametrize(("share", "doubted"), [(0.5, False), (0.7, True)])
def test_rows_of_broken_pictures_are_unreliable(share: float, doubted: bool) -> None:
    base = record("Good")
    far = [value for target in STYLE_TARGETS for value in _broken(target[-1], share)]
    found = made(none(), record("Good", outcomes={**base.outcomes, "far": far}), record("Half", half))
    assert (row(found, "Good").unreliable("style"), row(found, "Half").unreliable("style")) == (doubted, False)
    assert (
        any(text.startswith("‡ Good: more than half of the pictures prompted with an erased style") for text in found.footnotes) == doubted
    )
    (line,) = lines(found, label="Good", table="style", column="ua")
    assert line["unreliable"] == str(doubted).lower()
    for text in (export.to_markdown(found), to_latex(found)):
        assert (("Good‡" in text) or (r"Good\textsuperscript{\textdaggerdbl}" in text)) == doubted
    assert ("‡ marks rows that are unreliable" in export.to_markdown(found)) == doubted


def test_other_numerics_and_the_evaluating_judge_make_rows_unreliable() -> None:
    chosen = {"budget": {"settings": 9, "pictures": 240, "on": "evaluation"}, "configs": {}}
    found = made(none(), record("Good", tuning=chosen), record("Other", numerics={"dtype": "bfloat16"}), record("Half", half))
    assert not row(found, "Good").unreliable("cost")
    assert {own.label: own.unreliable("new style") for own in found.rows} == {"Good": True, "Other": True, "Half": False, "none": False}


def test_published_figures_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    rows = published_rows("unlearncanvas@saeuron")
    found = replace(made(none(), record("Good")), published=tuple(rows))
    text = export.to_markdown(found)
    _, shown = text.split("## Published figures")
    assert shown.count("\n| ") == 1 + 1 + len(rows)
    assert "neither averaged nor ranked" in shown
    doubts = [own["doubt"] for own in rows if "doubt" in own]
    assert doubts
    assert all(export._escape_markdown(doubt) in shown for doubt in doubts)
    export.write_all(found, tmp_path)
    table = pd.read_csv(tmp_path / "published.csv")
    assert table["ua"].dropna().tolist() == [own["ua"] for own in rows if "ua" in own]
    assert "83.7 → 34.2 (UnlearnDiffAtk)" in shown
    export.write_all(made(none(), record("Good")), tmp_path / "other")
    assert not (tmp_path / "other" / "published.csv").exists()

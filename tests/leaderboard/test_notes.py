"""Footnotes: what is missing, what differs, what was tuned, what was touched."""

from __future__ import annotations

import pytest
from made_up import ALL_TARGETS, STYLE_TARGETS, half, lines, made, none, perfect, record, row

from bench.leaderboard import export
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
    assert found.footnotes == ("Holes: 3 pictures of 1 targets are missing or unjudged; shares are over the rest.",)
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
    assert f"{base} (Good, none)" in note
    assert f"{changed} (Other)" in note
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
    worst = {"concept": "style:b", "share": 0.25, "low": 0.1, "high": 0.5, "n": 8}
    other = {"concept": "style:a", "share": 0.5, "low": 0.2, "high": 0.8, "n": 8}
    targets = {"style:a": {"worst": worst}, "style:b": {"worst": other}}
    pooled = {"unrelated": 0.21875, "low": 0.135, "high": 0.334, "n": 64, "pictures": 32}
    (note,) = made(none(), record("Good", detection={"pooled": pooled, "targets": targets})).footnotes
    assert "changed 21.9 % [13.5, 33.4] of the pictures that do not show the target" in note
    assert "style:a with style:b erased, 50.0 % [20.0, 80.0] of 8" in note


def test_the_table_says_which_way_a_method_takes() -> None:
    tuning = {
        "budget": {"settings": 2, "pictures": 8},
        "configs": {"style:a": {"way": "left", "n": 1}, "style:b": {"way": "right", "n": 2}},
    }
    found = made(none(config={"way": "no"}), record("A", config={"way": "left", "error": "exact", "n": 3}))
    assert found.footnotes == ("Chosen among several ways: A with error=exact, way=left.",)
    (_, ways) = made(none(), record("A", config={"way": "left", "n": 0}, tuning=tuning)).footnotes
    assert ways == "Chosen among several ways: A with way=tuned."

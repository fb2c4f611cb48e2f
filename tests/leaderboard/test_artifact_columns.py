"""AR and GA in the leaderboard: by hand, empty where nothing was measured, never ranked, in every export."""

from __future__ import annotations

import csv
import io
import itertools
import re
from typing import Any

import pytest

from bench.leaderboard import export
from bench.leaderboard.build import build
from bench.leaderboard.table import Leaderboard, Row
from bench.types import Card, Floors, MetricRules, Record

STYLES, OBJECTS = ("a", "b", "c"), ("x", "y", "z")
RULES, FLOORS = MetricRules(cra_includes_target=False), Floors(style=0.5, object=0.5)


def record(label: str, far: list[Any] | None, target: str = "style:a") -> Record:
    """Erases style a perfectly; `none` shows everything. `far` in the order of the cells."""
    cells = list(itertools.product(STYLES, OBJECTS))
    erased = label != "none"
    outcomes: dict[str, list[Any]] = {
        "target": [target if erased else ""] * 9,
        "style": [style for style, _ in cells],
        "object": [obj for _, obj in cells],
        "seed": [1] * 9,
        "style_pred": ["gone" if erased and style == "a" else style for style, _ in cells],
        "object_pred": [obj for _, obj in cells],
    }
    outcomes |= {} if far is None else {"far": far}
    card = Card(label, "", "", ("style", "object"), control=not erased)
    return Record(label, label, 1, {}, card, "mini@v1", {"dtype": "float32"}, outcomes)


def table(far: list[Any] | None, target: str = "style:a") -> Leaderboard:
    return build([record("none", None if far is None else [False] * 8 + [True]), record("M", far, target)], RULES, FLOORS)


def row(leaderboard: Leaderboard, label: str) -> Row:
    return next(row for row in leaderboard.rows if row.label == label)


FAR = [True, True, False, True, False, False, False, False, False]


def test_ar_and_ga_by_hand() -> None:
    cells = row(table(FAR), "M").cells
    assert cells["style", "ar_target"].value == pytest.approx(2 / 3)
    assert cells["style", "ar_retained"].value == pytest.approx(1 / 6)
    assert (cells["style", "ar_target"].n, cells["style", "ar_retained"].n) == (3, 6)
    # UA, IRA and CRA are 1; of all nine pictures three are far.
    assert cells["style", "ga"].value == pytest.approx((1 + 1 + 1 + 1 - 3 / 9) / 4)
    base = row(table(FAR), "none").cells
    assert (base["style", "ar_target"].value, base["style", "ar_retained"].value) == (0, pytest.approx(1 / 6))
    assert base["style", "ga"].value == pytest.approx((0 + 1 + 1 + 8 / 9) / 4)
    low, high = cells["style", "ar_retained"].low, cells["style", "ar_retained"].high
    assert low is not None
    assert high is not None
    assert 0 <= low <= 1 / 6 <= high


def test_where_no_picture_was_measured_there_are_no_columns_of_artifacts() -> None:
    found = table(None)
    assert not {"ar_target", "ar_retained", "ga"} & {column.key for column in found.columns}
    assert (row(found, "M").cells["style", "average"].value, row(found, "M").ranks) == (pytest.approx(1.0), {"style": (1, 1, 1)})
    assert "AR" not in export.to_markdown(found)


def test_unmeasured_pictures_leave_ar_and_ga_empty() -> None:
    found = table([None] * 9)
    cells = row(found, "M").cells
    assert [cells["style", name].value for name in ("ar_target", "ar_retained", "ga")] == [None] * 3
    lines = [line for line in csv.DictReader(io.StringIO(export.to_csv(found))) if (line["label"], line["column"]) == ("M", "ga")]
    assert [line["value"] for line in lines] == [""]


def test_artifacts_do_not_rank() -> None:
    near, far = table([False] * 9), table([True] * 9)
    assert row(near, "M").ranks == row(far, "M").ranks
    assert row(near, "M").cells["style", "score"] == row(far, "M").cells["style", "score"]


def test_records_keep_the_column() -> None:
    for one in (record("M", FAR), record("M", None), record("M", [None] * 9)):
        again = Record.from_json(one.to_json())
        assert again.outcomes == one.outcomes


def test_every_export_has_the_columns_and_says_what_they_are() -> None:
    found = table(FAR)
    titles = ("GA (%), not ranked", "AR target (%)", "AR retained (%)")
    assert [column.title for column in found.columns if column.key in ("ga", "ar_target", "ar_retained")] == list(titles)
    assert all(title in export.to_markdown(found) for title in titles)
    assert titles[1] in export.to_latex(found).replace(r"\%", "%")
    for text in (export.to_markdown(found), export.to_latex(found)):
        assert "AR is the share of pictures" in text
        assert "neither is GA" in text
    assert re.search(r"\| 66\.7 \[[\d.]+, [\d.]+\] \| 16\.7", export.to_markdown(found).replace("**", "").replace("\\", ""))
    shown = [str(column.header) for column in export.terminal(found)[0].columns]
    assert set(titles) <= set(shown)
    # Where space is short, the one that says what UA was bought with.
    assert set(titles) & {str(column.header) for column in export.terminal(found, brief=True)[0].columns} == {"AR target (%)"}
    (line,) = [line for line in csv.DictReader(io.StringIO(export.targets_csv(found))) if line["label"] == "M"]
    assert (float(line["ar"]), line["ar_target_n"], line["ar_retained_n"]) == (pytest.approx(1 / 3), "3", "6")


def test_a_mixed_target_has_ar_and_no_ga() -> None:
    found = table(FAR, "style:a+object:x")
    assert {"ar_target", "ar_retained"} <= {column.key for column in found.columns_of("mixed")}
    assert "ga" not in {column.key for column in found.columns_of("mixed")}
    # Shown: style a (two far) and object x in styles b (far) and c (near).
    assert row(found, "M").cells["mixed", "ar_target"].value == pytest.approx(3 / 5)

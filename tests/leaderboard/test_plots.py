"""Figures and frames of a leaderboard."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from made_up import everything, half, made, none, record, row

from bench.api import load_leaderboard
from bench.errors import BenchError
from bench.leaderboard.export import write_all
from bench.plots import draw_all


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_figures_are_the_same_every_time_and_name_every_row(kind: str, tmp_path: Path) -> None:
    found = made(none(), record("Half", half), record("Good"))
    written = draw_all(found, tmp_path, kind)
    assert [path.name for path in written] == [f"{name}.{kind}" for name in ("scores", "tradeoff", "concepts")]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in draw_all(found, tmp_path, kind)] == before
    if kind == "svg":
        text = (tmp_path / "scores.svg").read_text()
        assert {"Half", "Good", "none"} <= set(re.findall(r">([^<>]+)</text>", text))


def test_without_pictures_there_are_no_figures(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no row with pictures"):
        draw_all(made(none()), tmp_path, "pdf")


def test_every_record_can_be_drawn(tmp_path: Path) -> None:
    assert draw_all(made(*everything()), tmp_path, "pdf")


def test_frames_hold_what_the_leaderboard_holds(tmp_path: Path) -> None:
    found = made(none(), record("Half", half))
    write_all(found, tmp_path)
    frame = load_leaderboard(tmp_path)
    own = frame[(frame["label"] == "Half") & (frame["table"] == "style")].set_index("column")
    assert own.loc["ua", "value"] == row(found, "Half").cells["style", "ua"].value
    assert set(frame["label"]) == {"none", "Half"}, "a method of the name none is no missing value"
    assert set(load_leaderboard(tmp_path, "targets")["target"]) == {"style:a", "style:b", "style:c"}
    assert isinstance(load_leaderboard(tmp_path, "differences"), pd.DataFrame)
    with pytest.raises(BenchError, match=r"attacks\.csv is not there"):
        load_leaderboard(tmp_path, "attacks")
    with pytest.raises(BenchError, match='did you mean "targets"'):
        load_leaderboard(tmp_path, "target")

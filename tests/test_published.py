"""Figures from papers: every row says where it is from, in which protocol, and what it is a share of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "results" / "published").glob("*.json"))
SHARES = {"ua", "ira", "cra", "ra", "ar", "ga", "ua_before", "ua_after", "pre_asr", "asr", "failure_rate"}
TEXTS = {"id", "method", "concepts", "protocol", "source", "doubt", "settings", "attack"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rows_have_a_source_a_protocol_and_figures(path: Path) -> None:
    body = json.loads(path.read_text())
    assert "Nothing here was measured by this project" in body["about"]
    for row in body["rows"]:
        figures = {name: value for name, value in row.items() if name not in TEXTS or (name == "attack" and not isinstance(value, str))}
        assert all(row[name] for name in ("method", "concepts", "protocol", "source")), row
        assert any(isinstance(value, int | float) for value in figures.values()), row
        assert all(value is None or 0 <= value <= 100 for name, value in figures.items() if name in SHARES), row
    keys = [tuple(str(row.get(name)) for name in ("id", "method", "concepts", "protocol", "attack", "source")) for row in body["rows"]]
    assert len(set(keys)) == len(keys)


def test_known_inconsistencies_are_told() -> None:
    rows = [row for path in FILES for row in json.loads(path.read_text())["rows"]]
    objects = [row for row in rows if row.get("id") == "saeuron-objects"]
    assert sorted(row["ua"] for row in objects) == [78.82, 87.16]
    assert all(row["doubt"] for row in objects)
    swapped = next(row for row in rows if row["method"].startswith("SDXL-Turbo") and row.get("ira") == 35.41)
    assert "53.41" in swapped["doubt"]
    # GA = mean of UA, IRA, CRA and 1 − AR: PER's page, recomputed.
    per = next(row for row in rows if row.get("id") == "per-objects")
    assert (per["ua"] + per["ira"] + per["cra"] + 100 - per["ar"]) / 4 == pytest.approx(per["ga"], abs=0.01)

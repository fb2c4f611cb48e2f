"""Published rows: what the file holds, and a run held against one."""

from __future__ import annotations

import json
from pathlib import Path

import miniature
import pytest
from commands import bench

from bench import registry
from bench.config import parse_targets, parse_variant

PUBLISHED = Path(__file__).parents[1] / "results" / "published"


def test_the_shipped_figures_are_plausible_and_their_settings_exist() -> None:
    body = json.loads((PUBLISHED / "unlearncanvas.json").read_text())
    for row in body["rows"]:
        assert row["source"]
        assert all(row[name] is None or 0 <= row[name] <= 100 for name in ("ua", "ira", "cra"))
        if settings := row.get("settings"):
            suite = registry.suite(settings["suite"])
            assert suite.key.startswith("unlearncanvas")
            assert parse_targets(settings["concepts"], suite)
            name, given = parse_variant(settings["methods"])
            kind = registry.method(name)
            kind.Config.model_validate(given)
            assert set(settings.get("assets", ())) <= set(suite.files)
    conflicting = [row for row in body["rows"] if row["id"] == "saeuron-objects"]
    assert [(row["ua"], row["ira"], row["cra"]) for row in conflicting] == [(78.82, 95.47, 95.58), (87.16, 85.57, 74.14)]
    assert all(row["doubt"] for row in conflicting)


def test_a_row_is_run_and_compared(tmp_path: Path) -> None:
    assets = miniature.everything(tmp_path / "assets")
    more = ("--published", str(PUBLISHED), "--assets", str(assets), "--device", "cpu", "--dtype", "float32", "--concepts", "Dogs")
    without = bench("reproduce", "per-objects", "--preset", "smoke", *more, cwd=tmp_path)
    assert without.returncode == 2
    assert "the anchor prompts of concept ablation" in " ".join(without.stderr.split()).lower(), "as published, not the project's own"
    more += ("--anchor-prompts", str(miniature.anchor_prompts(tmp_path / "anchors")))
    found = bench("reproduce", "per-objects", "--preset", "smoke", *more, cwd=tmp_path)
    assert found.returncode == 1, "random weights reproduce nothing"
    said = " ".join(found.stdout.split())
    assert "85.37" in said
    assert "The code was not public; choices that the page leaves open are ours." in said
    assert (tmp_path / "results" / "runs" / "reproduce-per-objects-smoke" / "leaderboard.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("saeuron-style",), 'did you mean "saeuron-styles"'),
        (("saemnesia-styles",), "cannot be run"),
        (("saeuron-objects", "--assets", "nowhere"), "class-params"),
        (("saeuron-styles", "--assets", "nowhere"), "anchor-prompts"),
        (("saeuron-styles", "--published", "nowhere"), "install the package again"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    found = bench("reproduce", "--published", str(PUBLISHED), *arguments, cwd=tmp_path)
    assert found.returncode == 2
    assert message in " ".join(found.stderr.split())


def test_all_rows_are_listed(tmp_path: Path) -> None:
    found = bench("reproduce", "--published", str(PUBLISHED), cwd=tmp_path)
    assert found.returncode == 0
    assert "saeuron-styles" in found.stdout

"""Concepts removed one after the other: what is fitted from what, the triangle of what comes back, retention after every task."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import bench
from safetensors.torch import load_file

from bench.config import parse_sequence
from bench.errors import BenchError
from bench.leaderboard.sequence import sequence, to_markdown
from bench.suites.minicanvas import SUITE
from bench.types import Card, MetricRules, Record

RUN = (
    "run", "--preset", "smoke", "--batch-size", "4", "--dtype", "float32", "--compile", "no", "--methods", "uce,esd", "--set",
    "esd.iterations=2", "--set", "esd.trajectories=2", "--steps", "2", "--sequential", "fish,neon", "--out", "run",
)  # fmt: skip


def test_targets_are_the_concepts_so_far() -> None:
    order, targets = parse_sequence("fish,neon,key", SUITE)
    assert order == ("object:fish", "style:neon", "object:key")
    assert [str(target) for target in targets] == ["object:fish", "style:neon+object:fish", "style:neon+object:key+object:fish"]
    for text, message in (("fish", "it names one concept"), ("fish+neon,key", "more than one concept at once")):
        with pytest.raises(BenchError, match=message):
            parse_sequence(text, SUITE)


def record(label: str, outcomes: list[tuple[str, str, str, str, str]], how: str = "") -> Record:
    names = ("target", "style", "object", "style_pred", "object_pred")
    columns = {name: [row[i] for row in outcomes] for i, name in enumerate(names)} | {"seed": [1] * len(outcomes)}
    card = Card(label, "", "", ("style", "object"), control=label == "none")
    return Record(label, label, 1, {}, card, "p", {}, columns, provenance={"sequential": how})


def test_the_triangle_by_hand() -> None:
    both = "style:b+style:a"
    outcomes = [
        ("style:a", "a", "x", "c", "x"), ("style:a", "b", "x", "b", "x"), ("style:a", "c", "x", "b", "y"),
        (both, "a", "x", "a", "x"), (both, "b", "x", "c", "x"), (both, "c", "x", "c", "y"),
    ]  # fmt: skip
    base = [("", style, "x", style, "x") for style in "abc"]
    rules = MetricRules(cra_includes_target=True)
    found = sequence([record("none", base), record("M", outcomes, "fitted again on all")], ["style:a", "style:b"], rules)
    ua = found[found["metric"] == "ua"].set_index(["after", "task"])["value"].to_dict()
    # After the second task the first concept is back.
    assert ua == {(1, "style:a"): 1.0, (2, "style:a"): 0.0, (2, "style:b"): 1.0}
    kept = found[found["task"] == ""].set_index(["after", "metric"])["value"].to_dict()
    # After one: of b and c one is right, of three objects two. After two: c is right, of three objects two.
    assert kept[1, "ira"] == pytest.approx(1 / 2)
    assert kept[1, "cra"] == pytest.approx(2 / 3)
    assert kept[1, "ra"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert kept[2, "ira"] == pytest.approx(1.0)
    assert kept[2, "ra"] == pytest.approx((1 + 2 / 3) / 2)
    text = to_markdown(found, ["style:a", "style:b"])
    assert "| style:a | 100.0 | – | 50.0 | 66.7 | 58.3 |" in text
    assert "| style:b | 0.0 | 100.0 | 100.0 | 66.7 | 83.3 |" in text


def test_a_sequence_is_run(tmp_path: Path) -> None:
    found = bench(*RUN, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    table = pd.read_csv(tmp_path / "run" / "sequential.csv", keep_default_na=False)
    assert len(table[(table["metric"] == "ua") & (table["method"] == "uce")]) == 1 + 2
    assert set(table["after"]) == {1, 2}
    how = dict(zip(table["method"], table["how"], strict=True))
    assert how == {"esd:iterations=2:trajectories=2": "continued from the last erasure", "uce": "fitted again on all"}
    assert "| style:neon |" in found.stdout
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    fits = {entry["target"]: entry["fit"] for entry in plan["units"] if entry["method"].startswith("esd")}
    weights = [load_file(next((tmp_path / "run" / "erasures" / fit).glob("*.safetensors"))) for fit in fits.values()]
    steps = [max(float((b[name] - a[name]).abs().max()) for name in a if "attn2" in name) for a, b in itertools.pairwise(weights)]
    assert all(0 < step < 2.5 * 2 * 3e-4 for step in steps), "two steps of Adam from the last erasure, not from the unedited model"
    assert all(torch.isfinite(value).all() for own in weights for value in own.values())
    assert bench("verify", "run", cwd=tmp_path).returncode == 0
    other = bench(*RUN[:-4], "--sequential", "neon,fish", "--out", "run", cwd=tmp_path)
    assert other.returncode == 2
    both = bench(*RUN, "--concepts", "fish", cwd=tmp_path)
    assert "--sequential names the concepts itself" in " ".join(both.stderr.split())

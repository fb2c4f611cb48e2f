"""The commands that measure the harness: `perf` and `numerics`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import BenchError
from bench.flips import Setting, label_flips
from bench.interfaces import FitContext
from bench.perf import report
from bench.perf import store as perf_store
from bench.perf.pairs import alternate, ratio
from bench.perf.world import World, suite_world
from bench.registry import method
from bench.suites.minicanvas import SUITE
from bench.types import Target

CPU = torch.device("cpu")


def test_ratios_are_taken_turn_by_turn() -> None:
    assert ratio([2.0, 3.0, 10.0], [1.0, 2.0, 2.0]) == {"median": 2.0, "low": 1.5, "high": 5.0, "pairs": 3}
    seen: list[str] = []
    cases: dict[str, Callable[[], object]] = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    found = alternate(cases, 3, CPU, lambda text: None)
    assert seen == ["a", "b"] * 4, "once unmeasured, then in turn"
    assert {name: len(own) for name, own in found.items()} == {"a": 3, "b": 3}


def test_the_shipped_table_is_made_of_the_shipped_figures() -> None:
    folder = Path(__file__).parents[1] / "results" / "perf"
    for path in folder.glob("*.json"):
        found = json.loads(path.read_text())
        assert path.with_suffix(".md").read_text() == report.as_table(found)


@pytest.mark.slow
def test_perf_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(*arguments: Any) -> World:
        world = suite_world(*arguments)
        context = FitContext(world.model, SUITE.texts, 0, 20, SUITE.guidance_scale, torch.bfloat16, SUITE.assets)
        kind = method("saeuron")
        return replace(world, edits=lambda: [kind(kind.Config()).fit(context, [concept]) for concept in SUITE.concepts[:2]])

    def two(self: World, dtype: torch.dtype, detection: str) -> Any:
        context = FitContext(self.model, SUITE.texts, 0, 20, SUITE.guidance_scale, dtype, SUITE.assets)
        kind = method("saeuron-detect")
        objects = [concept for concept in SUITE.concepts if concept.kind == "object"][:2]
        return {("saeuron-detect", Target((one,))): kind(kind.Config(detection=detection)).fit(context, [one]) for one in objects}

    monkeypatch.setattr(report, "suite_world", few)
    monkeypatch.setattr(World, "erasures", two)
    monkeypatch.setattr(report, "start_up", lambda *arguments: {"--help": 0.5})
    monkeypatch.setattr(report, "run_memory", lambda *arguments: {"1×": 900.0})
    monkeypatch.setattr(
        report, "engine_ratio", lambda *arguments: {"workers": 2, "pictures": 128, "steps": 5, "seconds": ratio([1.0], [1.0])}
    )
    for name, value in {"STYLES": 11, "OBJECTS": 12, "SEEDS": 1, "UNITS": 20}.items():
        monkeypatch.setattr(perf_store, name, value)
    monkeypatch.setattr(perf_store, "PRESET", replace(perf_store.PRESET, seeds=1))
    scope = report.Scope("minicanvas", report.PARTS["suite"], images=2, steps=20, pairs=1, compiled=False, table=6)
    found = report.measure(SUITE, scope, CPU, "bfloat16", 8, tmp_path, lambda text: None)
    assert json.loads((tmp_path / "minicanvas-cpu.json").read_text()) == found
    again = report.measure(SUITE, replace(scope, parts=("process",)), CPU, "bfloat16", 8, tmp_path, lambda text: None)
    assert again == found, "what other parts measured is kept"
    assert (tmp_path / "minicanvas-cpu.md").read_text() == report.as_table(found)
    assert (found["store"]["pictures"], found["store"]["units"], found["store"]["methods"]) == (132 * (1 + 10 * 22), 3 * (1 + 10 * 22), 10)
    assert found["store"]["verify_units"] == 20
    calibrated, published = (found["sharing"][name] for name in report.DETECTIONS)
    assert calibrated["rows_without"] == published["rows_without"] == 3 * 6 * 20 * 2
    assert calibrated["ratio"] < 0.8 < published["ratio"]
    assert calibrated["never_fork"] > 0.7 > published["never_fork"]
    assert set(found["edits"]) == {"1 erasure", "2 erasures in the bank", "dense hook"}
    assert calibrated["timed"]["rows"] < published["timed"]["rows"]
    assert set(calibrated["macro_ua"]) == {"saeuron-detect, objects"}
    assert found["attacks"]["goals"] == 30
    assert found["attacks"]["steps_a_second"]["median"] > 1
    assert 0 <= found["attacks"]["equal"] <= 1
    assert set(found["unet"]["share_of_peak"]) == {"eager"}
    assert 0 < found["unet"]["share_of_peak"]["eager"] < 2
    assert list(found["harness"]["peak_memory_mb"]) == ["2", "8", "32"]
    assert found["harness"]["eager"]["pairs"] == 1


def test_the_same_numerics_flip_nothing() -> None:
    half = Setting.parse("bfloat16:batch_size=4")
    table = label_flips(SUITE, half, Setting.parse("bfloat16:batch_size=4"), 5, 2, CPU, lambda n: None)
    assert table["flips"].tolist() == [0, 0]
    assert table["pixels_max"].tolist() == [0, 0]
    other = label_flips(SUITE, half, Setting.parse("float32:batch_size=4"), 5, 2, CPU, lambda n: None)
    assert (other["pixels_max"] > 0).all()
    assert other["n"].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bfloat61", 'did you mean "bfloat16"'),
        ("float32:slots=8", 'Unknown setting "slots"'),
        ("float32:batch_size=0", "give 1 to 4096"),
        ("float32:batch_size=many", "give 1 to 4096"),
        ("float32:compile=maybe", "neither yes nor no"),
    ],
)
def test_a_setting_that_is_none_is_a_sentence(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        Setting.parse(text)

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bench.errors import BenchError
from bench.interfaces import Classifier
from bench.registry import load_object
from bench.scoring import judge_all, load_judge
from bench.suites.minicanvas import NO_OBJECT, OBJECTS, STYLES, SUITE
from bench.suites.minicanvas.render import render_many

CPU = torch.device("cpu")
ROLES = ("evaluation", "tuning", "artifact")
CELLS = [(style, obj, 970_000_000 + k) for k in range(8) for style in STYLES for obj in (*OBJECTS, NO_OBJECT)]


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.from_numpy(render_many(CELLS, 2))


@pytest.mark.parametrize("role", ROLES)
def test_a_judge_knows_held_out_pictures(role: str, pictures: torch.Tensor) -> None:
    judge = load_judge(SUITE, role, CPU)
    assert isinstance(judge, Classifier)
    assert judge.styles == STYLES
    assert judge.objects == (*OBJECTS, NO_OBJECT)
    out = judge_all(judge, pictures)
    styles = torch.tensor([judge.styles.index(s) for s, _, _ in CELLS])
    objects = torch.tensor([judge.objects.index(o) for _, o, _ in CELLS])
    assert (out.style.argmax(1) == styles).float().mean() >= 0.99
    assert (out.object.argmax(1) == objects).float().mean() >= 0.99
    assert sum(p.numel() for p in judge.parameters()) <= 1_500_000


def test_judges_are_three_different_networks() -> None:
    judges = [load_judge(SUITE, role, CPU) for role in ROLES]
    assert len({judge.architecture for judge in judges}) == 3
    assert len({judge.digest for judge in judges}) == 3


def test_verdicts_do_not_depend_on_neighbours(pictures: torch.Tensor) -> None:
    judge = load_judge(SUITE, "evaluation", CPU)
    whole = judge_all(judge, pictures[:100])
    part = judge_all(judge, pictures[30:77])
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[30:77], b)


def test_a_missing_truncated_or_foreign_folder_is_a_sentence(tmp_path: Path) -> None:
    load = load_object("classifiers.two_head:load")
    with pytest.raises(BenchError, match="cannot be read"):
        load(tmp_path / "nothing", CPU)
    shutil.copytree(SUITE.judge("tuning").folder, tmp_path / "judge")
    weights = tmp_path / "judge" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BenchError, match="restore it or build it again"):
        load(tmp_path / "judge", CPU)
    weights.write_bytes(whole)
    config = tmp_path / "judge" / "config.json"
    original, digest = config.read_text(), load(tmp_path / "judge", CPU).digest
    config.write_text(original.replace('"neon"', '"noen"'))
    assert load(tmp_path / "judge", CPU).digest != digest, "the names of the classes belong to a judge's identity"
    config.write_text(original.replace('"pop"', '"pop", "baroque"'))
    with pytest.raises(BenchError, match="size mismatch"):
        load(tmp_path / "judge", CPU)

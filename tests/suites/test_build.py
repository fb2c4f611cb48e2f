"""The training loop that makes the world: seeded, and the same after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.suites.minicanvas.build import training
from bench.suites.minicanvas.build.training import Recipe, TrainingLog, optimise

RECIPE = Recipe(steps=40, batch=8, lr=1e-2, seed=3, warmup=5, ema=0.9)


def train(folder: Path, stop_at: int | None = None) -> tuple[nn.Module, TrainingLog]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def loss_of(step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(RECIPE.batch, 4)
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    folder.mkdir(exist_ok=True)
    log = optimise("line", model, loss_of, RECIPE, folder, lambda text: None)
    return model, log


def test_training_learns_and_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, log = train(tmp_path / "whole")
    assert len(log.losses) == 20
    assert log.losses[-1] < log.losses[0]
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_at=23)
    assert not list((tmp_path / "broken").glob("*.tmp"))
    again, other = train(tmp_path / "broken")
    assert torch.equal(whole.weight, again.weight)
    assert other.losses == log.losses
    assert other.plans == [(0, 40)]

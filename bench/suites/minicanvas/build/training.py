"""The one training loop that every network of minicanvas uses: seeded, resumable, with progress and time left."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.files import write_atomic

SAVE_EVERY_SECONDS, SAY_EVERY_SECONDS = 120.0, 20.0


@dataclass(frozen=True)
class Recipe:
    """How one network is trained. `lr` is the peak of a cosine with `warmup` linear steps; `ema` 0 keeps no average."""

    steps: int
    batch: int
    lr: float
    seed: int
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.0
    final_lr: float = 0.01


@dataclass
class TrainingLog:
    """What is recorded beside the weights: seconds spent, the loss averaged over twentieths of the run, planned steps.

    `plans` holds (first step, planned steps): more than one entry where a checkpoint was continued with another plan.
    """

    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    plans: list[tuple[int, int]] = field(default_factory=list)


def _learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def _save(path: Path, state: dict[str, object]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def optimise(
    name: str, model: nn.Module, loss_of: Callable[[int], Tensor], recipe: Recipe, folder: Path, say: Callable[[str], None] = print
) -> TrainingLog:
    """Train `model` in place; `loss_of(step)` must draw its batch from torch's global generator, seeded here per step.

    A checkpoint in `folder` is written every two minutes and continued from, with the same result as an unbroken run.
    With `recipe.ema`, the model ends up with its averaged weights (warm-up as in the EMA of diffusers' training utilities).
    """
    checkpoint = folder / f"{name}.ckpt"
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    average = [p.detach().clone() for p in parameters] if recipe.ema else []
    start, running, log = _resume(checkpoint, model, optimiser, average)
    if start:
        say(f"{name}: continued at step {start}")
    if not log.plans or log.plans[-1][1] != recipe.steps:
        log.plans.append((start, recipe.steps))
    model.train()
    began = said = saved = time.monotonic()
    before, chunk = log.seconds, max(1, recipe.steps // 20)
    for step in range(start, recipe.steps):
        loss = _step(step, loss_of, optimiser, parameters, average, recipe)
        running += loss
        if (step + 1) % chunk == 0:
            log.losses.append(round(running / chunk, 5))
            running = 0.0
        now, last = time.monotonic(), step + 1 == recipe.steps
        log.seconds = before + now - began
        if now - said > SAY_EVERY_SECONDS or last:
            left = (now - began) / (step + 1 - start) * (recipe.steps - step - 1)
            say(f"{name}: step {step + 1}/{recipe.steps}, loss {loss:.4f}, {left / 60:.1f} min left")
            said = now
        if now - saved > SAVE_EVERY_SECONDS or last:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
            _save(checkpoint, {**state, "step": step + 1, "running": running, "log": asdict(log)})
            saved = now
    with torch.no_grad():
        for parameter, kept in zip(parameters, average, strict=bool(average)):
            parameter.copy_(kept)
    model.eval()
    return log


def _resume(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: list[Tensor]) -> tuple[int, float, TrainingLog]:
    """(next step, running loss, log), with the checkpoint's values put in place if there is one."""
    if not checkpoint.exists():
        return 0, 0.0, TrainingLog()
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BenchError(f"{checkpoint} is damaged: delete it, and this part is trained again.") from error
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    for kept, loaded in zip(average, state["average"], strict=True):
        kept.copy_(loaded)
    return state["step"], state["running"], TrainingLog(**state["log"])


def _step(
    step: int, loss_of: Callable[[int], Tensor], optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], average: list[Tensor],
    recipe: Recipe,
) -> float:  # fmt: skip
    """One optimiser step; returns the loss."""
    torch.manual_seed(recipe.seed * 1_000_003 + step)
    for group in optimiser.param_groups:
        group["lr"] = _learning_rate(step, recipe)
    loss = loss_of(step)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    if average:
        decay = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
    return float(loss.detach())

"""Gradient steps of an attack on many goals together beside the same goals one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.adversary import AttackContext, Candidate, Goal
from bench.attack_plan import goal_of
from bench.diffusion.memory import PeakMemory
from bench.diffusion.rows import Row
from bench.diffusion.victim import Victim
from bench.engine.assault import spelled, vocabulary
from bench.interfaces import Erasure
from bench.perf.pairs import alternate, ratio
from bench.perf.world import World
from bench.registry import attack as find_attack
from bench.types import GenerationRequest, Target

GOALS, ALONE, ITERATIONS = 30, 6, 10
"""Attacked together; of these, attacked one at a time; gradient steps of each."""


def attack_ratio(
    world: World, erasures: Sequence[Erasure], dtype: torch.dtype, pairs: int, goals: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """UnlearnDiffAtk's gradient steps a second, together ÷ one at a time, on victims that each have another of the erasures.

    `equal` is the share of the goals attacked alone that end with the same prompt in float32, and `equal_as_timed` in `dtype`: with
    coarser rounding, another batch soon draws another token. Target pictures are noise: time does not depend
    on them.
    """
    model, requests = world.model, world.requests[:goals]
    alone = [k * goals // min(ALONE, goals) for k in range(min(ALONE, goals))]
    owners = [erasures[k % len(erasures)] for k in range(goals)]
    known, texts = vocabulary(model, world.suite), spelled(model)
    made = find_attack("unlearndiffatk")(find_attack("unlearndiffatk").Config(timesteps=1, iterations=ITERATIONS))

    def attacked(places: Sequence[int], dtype: torch.dtype = dtype) -> list[str]:
        own = [_goal(world, requests[k]) for k in places]
        rows = [Row(goal.request, owners[k]) for goal, k in zip(own, places, strict=True)]
        targets = torch.stack([_noise(model.latent_shape, k) for k in places]).to(model.device)
        context = AttackContext(model, own, targets, Victim(model, rows, dtype), None, known, texts)
        candidates: list[Candidate] = next(made.search(context))
        return [candidate.request.prompt for candidate in candidates]

    def equal(dtype: torch.dtype) -> float:
        prompts = attacked(range(goals), dtype)
        return sum(attacked([k], dtype) == [prompts[k]] for k in alone) / len(alone)

    with PeakMemory(model.device) as memory:
        attacked(range(goals))
    cases = {"together": lambda: attacked(range(goals)), "one at a time": lambda: [attacked([k]) for k in alone]}
    seconds = alternate(cases, pairs, model.device, say)
    speeds = {"together": goals * ITERATIONS, "one at a time": len(alone) * ITERATIONS}
    rates = {name: [speeds[name] / value for value in own] for name, own in seconds.items()}
    return {
        "goals": goals, "steps_a_second": ratio(rates["together"], rates["one at a time"]), "equal": equal(torch.float32),
        "equal_as_timed": equal(dtype),
        "best_steps_a_second": max(rates["together"]), "peak_memory_mb": memory.peak_mb,
    }  # fmt: skip


def _goal(world: World, request: GenerationRequest) -> Goal:
    concept = next(one for one in world.suite.concepts if Target((one,)).involves(request.style, request.object))
    return replace(goal_of(world.suite, Target((concept,)), request, False), forbidden=())


def _noise(shape: tuple[int, int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

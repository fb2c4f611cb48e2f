"""What Ray costs beside processes of our own, at the same work and number of workers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.config import DTypeName, RunConfig
from bench.engine.dispatch import dispatch
from bench.engine.job import Crew, Job, Portion
from bench.perf.pairs import Case, alternate, ratio
from bench.runner import Engine, crew_of
from bench.suites.suite import Suite

WORKERS = 2
SEEDS = 40
"""Of a style × object grid: enough bundles for every turn."""


class Quiet:
    """A reporter that does not care."""

    def say(self, text: str) -> None:
        """Nothing."""

    def total(self, pictures: int, done: int) -> None:
        """Nothing."""

    def units(self, done: int, units: int, failed: int) -> None:
        """Nothing."""

    def advance(self, pictures: int) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""


def engine_ratio(
    suite: Suite, device: torch.device, dtype: DTypeName, steps: int, pairs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of a bundle for each of `WORKERS` workers, Ray ÷ local; loading the model is not counted."""
    config = RunConfig.model_validate({
        "suite": suite.name, "preset": "full", "methods": ("none",), "settings": {}, "targets": (str(suite.concepts[0]),), "seeds": SEEDS,
        "steps": steps, "batch_size": 32,
    })  # fmt: skip
    stop = lambda: False  # noqa: E731
    with ExitStack() as stack:
        cases: dict[str, Case] = {}
        for name in ("local", "ray"):
            say(f"starting workers, {name}")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            job = Job(config, folder, "auto" if device.type == "cuda" else device.type, dtype, "no")
            crew = stack.enter_context(crew_of(job, Engine(name, WORKERS), Quiet(), stop))
            cases[name] = partial(_turn, crew, list(crew.outline.portions))
        seconds = alternate(cases, pairs, device, say)
    return {"workers": WORKERS, "pictures": 64 * WORKERS, "steps": steps, "seconds": ratio(seconds["ray"], seconds["local"])}


def _turn(crew: Crew, portions: list[Portion]) -> None:
    """The next bundles, one for each worker."""
    own = tuple(portions.pop() for _ in range(WORKERS))
    crew.outline = crew.outline._replace(fits=(), portions=own)
    dispatch(crew, Quiet(), lambda: False)

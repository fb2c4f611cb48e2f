"""What several tests share: the shipped model, loaded once, and short requests on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several processes spin and wait for each other; what is printed is as wide as without a terminal.
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
with suppress(ImportError):
    import setuptools  # noqa: F401  # must come before distutils, which a compiler of torch imports too

import pytest
import torch
from hypothesis import settings

from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.examples import Painter
from bench.interfaces import FitContext
from bench.suites.minicanvas import SUITE
from bench.types import GenerationRequest

SLOTS = 8
# Examples are the same in every run, and a slow machine is no failure.
settings.register_profile("bench", deadline=None, derandomize=True)
settings.load_profile("bench")


@pytest.fixture(scope="session", autouse=True)
def _own_assets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fits keep for each other is the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_ASSETS", str(tmp_path_factory.mktemp("assets")))
        yield


@pytest.fixture(scope="session")
def model() -> DiffusionModel:
    return load_model(SUITE.model_folder(), torch.device("cpu"))


@pytest.fixture(scope="session")
def context(model: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> FitContext:
    painter = Painter(SUITE, model, 4, torch.float32, SLOTS)
    return FitContext(
        model, SUITE.texts, seed=0, steps=4, guidance_scale=SUITE.guidance_scale, assets=SUITE.assets, examples=painter.examples,
        captions=painter.captions, generate=painter.generate, cache=tmp_path_factory.mktemp("cache"),
    )  # fmt: skip


def request_of(style: str = "neon", obj: str = "fish", seed: int = 1, steps: int = 4, scale: float = 4.0) -> GenerationRequest:
    return GenerationRequest(SUITE.prompt(style, obj), style, obj, seed, f"{style}/{obj}", steps, scale, 64, 64)

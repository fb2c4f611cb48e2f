"""What several tests share: the shipped model, loaded once, and short requests on it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.interfaces import FitContext
from bench.suites.minicanvas import SUITE
from bench.types import GenerationRequest

SLOTS = 8
# Examples are the same in every run, and a slow machine is no failure.
settings.register_profile("bench", deadline=None, derandomize=True)
settings.load_profile("bench")


@pytest.fixture(scope="session")
def model() -> DiffusionModel:
    return load_model(SUITE.model_folder(), torch.device("cpu"))


@pytest.fixture(scope="session")
def context(model: DiffusionModel) -> FitContext:
    return FitContext(model, SUITE.texts, seed=0, steps=4, guidance_scale=SUITE.guidance_scale, assets=SUITE.assets)


def request_of(style: str = "neon", obj: str = "fish", seed: int = 1, steps: int = 4, scale: float = 4.0) -> GenerationRequest:
    return GenerationRequest(SUITE.prompt(style, obj), style, obj, seed, f"{style}/{obj}", steps, scale, 64, 64)

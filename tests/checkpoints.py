"""Fitting the method checkpoint on one file, for the tests."""

from __future__ import annotations

from pathlib import Path

from bench.diffusion.model import DiffusionModel
from bench.interfaces import Erasure, FitContext
from bench.registry import method
from bench.suites.minicanvas import SUITE
from bench.types import Concept

NEON, FISH = Concept("style", "neon"), Concept("object", "fish")


def own_context(model: DiffusionModel) -> FitContext:
    return FitContext(model, SUITE.texts, seed=0, steps=2, guidance_scale=4.0, assets=SUITE.assets)


def fitted(model: DiffusionModel, path: Path, *concepts: Concept, **settings: object) -> Erasure:
    kind = method("checkpoint")
    made = kind(kind.Config(path=path, **settings))
    wanted = list(concepts or (NEON,))
    assert len(made.inputs(SUITE.assets, wanted)["checkpoint"]) == 64
    return made.fit(own_context(model), wanted)

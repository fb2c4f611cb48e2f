"""Make a suite's sparse autoencoders: what `python -m bench train-sae` does, with the suite's pictures and hook points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from bench.config import method_config
from bench.diffusion.loading import load_model
from bench.diffusion.model import attention_blocks
from bench.diffusion.numerics import pick_dtype
from bench.errors import BenchError, unknown
from bench.registry import load_object
from bench.suites.suite import Split, Suite
from bench.types import KINDS, Concept, GenerationRequest


def concepts_at(suite: Suite, hookpoints: Sequence[str]) -> dict[str, list[Concept]]:
    """Hook point → the concepts whose statistics are gathered there.

    All at the hook points that are named; at the suite's own, those of the kinds that they decide.
    """
    if hookpoints:
        return {name: list(suite.concepts) for name in hookpoints}
    found: dict[str, list[Concept]] = {}
    for kind in KINDS:
        for name in suite.assets.hookpoints.get(kind, ()):
            found.setdefault(name, []).extend(concept for concept in suite.concepts if concept.kind == kind)
    return found


def train_sae(
    suite: Suite, hookpoints: Sequence[str], parts: Sequence[str], settings: Mapping[str, Any], out: Path, device: torch.device,
    dtype: str, slots: int, steps: int, say: Callable[[str], None], folder: Path | None = None,
) -> None:  # fmt: skip
    """Train, gather statistics, calibrate: `parts` of these, into `out`. The same call again continues.

    `folder`: another model than the suite's, a diffusers folder.
    """
    known = load_object("methods.sae.build:PARTS")
    for part in parts:
        if part not in known:
            raise unknown("part", part, known)
    concepts = concepts_at(suite, hookpoints)
    if not concepts:
        raise BenchError(f"{suite.name} names no hook points: find them (python -m bench locate) and give --hookpoints.")
    recipe = method_config("train-sae", load_object("methods.sae.training:SAERecipe"), {**suite.sae_settings, **settings})
    model = load_model(folder or suite.model_folder(), device)
    blocks = dict(model.unet.named_modules())
    for name in concepts:
        if name not in blocks:
            raise unknown("block of the UNet", name, attention_blocks(model.unet))
    precision = pick_dtype(cast(Any, dtype), model, slots)

    def requests(split: str, count: int, start: int) -> tuple[GenerationRequest, ...]:
        return suite.split_requests(cast(Split, split), count, steps, start)

    build = load_object("methods.sae.build:SAEBuild")
    build(
        model, concepts, requests, recipe, out, precision, slots, steps, suite.sae_pictures, say
    ).run(parts)  # fmt: skip

"""Make a suite's sparse autoencoders: what `python -m bench train-sae` does, with the suite's pictures and hook points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from bench.config import method_config
from bench.diffusion.model import attention_blocks, load_model
from bench.diffusion.numerics import pick_dtype
from bench.errors import BenchError, unknown
from bench.registry import load_object
from bench.suites.suite import Split, Suite
from bench.types import KINDS, Concept, GenerationRequest


def concepts_at(suite: Suite, hookpoints: Sequence[str]) -> dict[str, list[Concept]]:
    """Hook point → the concepts whose statistics are gathered there: those of the kinds it decides, all at any other block."""
    own = {name: [kind for kind in KINDS if name in suite.assets.hookpoints.get(kind, ())] for name in hookpoints}
    return {name: [c for c in suite.concepts if c.kind in (kinds or KINDS)] for name, kinds in own.items()}


def train_sae(
    suite: Suite, hookpoints: Sequence[str], parts: Sequence[str], settings: Mapping[str, Any], out: Path, device: torch.device,
    dtype: str, slots: int, steps: int, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Train, gather statistics, calibrate: `parts` of these, into `out`. The same call again continues."""
    known = load_object("methods.sae.build:PARTS")
    for part in parts:
        if part not in known:
            raise unknown("part", part, known)
    names = tuple(hookpoints) or tuple(dict.fromkeys(name for kind in KINDS for name in suite.assets.hookpoints.get(kind, ())))
    if not names:
        raise BenchError(f"{suite.name} names no hook points: find them (python -m bench locate) and give --hookpoints.")
    recipe = method_config("train-sae", load_object("methods.sae.training:SAERecipe"), {**suite.sae_settings, **settings})
    model = load_model(suite.model_folder(), device)
    blocks = dict(model.unet.named_modules())
    for name in names:
        if name not in blocks:
            raise unknown("block of the UNet", name, attention_blocks(model.unet))
    precision = pick_dtype(cast(Any, dtype), model, slots)

    def requests(split: str, count: int, start: int) -> tuple[GenerationRequest, ...]:
        return suite.split_requests(cast(Split, split), count, steps, start)

    build = load_object("methods.sae.build:SAEBuild")
    build(
        model, concepts_at(suite, names), requests, recipe, out, precision, slots, steps, suite.sae_pictures, say
    ).run(parts)  # fmt: skip

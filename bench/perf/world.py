"""What is measured on: a suite as it is, or SD 1.5's architecture with random weights (speed does not depend on their values)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from bench.diffusion import architectures
from bench.diffusion.model import DiffusionModel
from bench.diffusion.numerics import USUAL_SLOTS
from bench.interfaces import Erasure
from bench.registry import load_object, method
from bench.session import fit_context
from bench.suites.suite import Suite
from bench.tuned import configs
from bench.types import GenerationRequest, Target

SD15_BLOCK = "up_blocks.1.attentions.1"
SD15_CHANNELS, SD15_LATENTS, SD15_KEPT = 1280, 20_480, 32
EDITS = 44


@dataclass(frozen=True)
class World:
    """A model, its requests (one a cell of the suite's grid) and erasures that act on activations."""

    suite: Suite
    model: DiffusionModel
    requests: tuple[GenerationRequest, ...]
    edits: Callable[[], list[Erasure]]
    """Makes `EDITS` of one class, whose gates are open from the start."""

    def erasures(self, dtype: torch.dtype, detection: str) -> dict[tuple[str, Target], Erasure]:
        """Both SAE methods on every concept that they support, tuned values with another detection."""
        return fitted(self.suite, self.model, self.requests[0].steps, dtype, ("saeuron", "saeuron-detect"), {"detection": detection})


def fitted(
    suite: Suite, model: DiffusionModel, steps: int, dtype: torch.dtype, methods: Sequence[str], settings: dict[str, str]
) -> dict[tuple[str, Target], Erasure]:
    """Erasures by method and target, with tuned values where there are."""
    context = fit_context(suite, replace(suite.presets["full"], steps=steps), model, dtype, USUAL_SLOTS)
    found = {}
    for name in methods:
        kind = method(name)
        untuned, tuned = configs(suite, name, settings, suite.tuned(name))
        for concept in suite.concepts:
            if concept.kind in kind.card.supports:
                found[name, Target((concept,))] = kind(tuned.get(str(concept), untuned)).fit(context, [concept])
    return found


def suite_world(suite: Suite, model: DiffusionModel, steps: int, dtype: torch.dtype) -> World:
    """A suite with its own model."""
    preset = replace(suite.presets["full"], seeds=1, steps=steps)
    requests = suite.requests(Target((suite.concepts[0],)), preset)

    def edits() -> list[Erasure]:
        both = [fitted(suite, model, steps, dtype, ("saeuron",), {"detection": detection}) for detection in ("saeuron-code", "calibrated")]
        return [erasure for own in both for erasure in own.values()][:EDITS]

    return World(suite, model, requests, edits)


def sd15_model(suite: Suite, device: torch.device) -> DiffusionModel:
    """SD 1.5's UNet (860 M), VAE and CLIP-L with random weights."""
    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel(**architectures.UNET), AutoencoderKL(**architectures.VAE)
    text, scheduler = CLIPTextModel(architectures.clip_text()), DDIMScheduler(**architectures.SCHEDULER)
    tokenizer = CLIPTokenizer.from_pretrained(suite.model_folder() / "tokenizer", local_files_only=True, model_max_length=77)
    return DiffusionModel(tokenizer, text.to(device), unet.to(device), vae.to(device), scheduler, "random")


def sd15_world(suite: Suite, model: DiffusionModel, steps: int, folder: Path) -> World:
    """At 512 px, guidance 9, with a random SAE 1280 → 20,480, k 32, kept in `folder`."""
    cells = suite.requests(Target((suite.concepts[0],)), replace(suite.presets["full"], seeds=1, steps=steps))
    requests = tuple(replace(request, guidance_scale=9.0, height=512, width=512) for request in cells)
    return World(suite, model, requests, lambda: _random_edits(folder / f"unet.{SD15_BLOCK}", model.scheduler, steps))


def _random_edits(folder: Path, scheduler: DDIMScheduler, steps: int) -> list[Erasure]:
    """Each steers two latents of a random SAE, which win the TopK of many tokens."""
    autoencoder = "methods.sae.autoencoder"
    config = load_object(f"{autoencoder}:SAEConfig")(SD15_CHANNELS, SD15_KEPT, num_latents=SD15_LATENTS)
    sae = load_object(f"{autoencoder}:SparseAutoencoder")(config)
    with torch.no_grad():
        sae.encoder.bias[: 2 * EDITS] += 5.0
    sae.save(folder)
    digest = load_object(f"{autoencoder}:sae_digest")(folder)
    kind: Any = load_object("methods.sae.edits:SteerLatents")
    scheduler.set_timesteps(steps)
    shape = (1, steps, 2)
    return [
        Erasure(activations=(kind(
            hookpoints=(SD15_BLOCK,), saes=(str(folder),), digests=(digest,), timesteps=scheduler.timesteps.long(),
            latents=torch.tensor([2 * e, 2 * e + 1]).expand(shape), thresholds=torch.zeros(shape), factors=torch.full(shape, -1.0),
            gate_latents=torch.zeros(1, steps, 0, dtype=torch.int64), gate_thresholds=torch.zeros(1, steps, 0),
        ),))
        for e in range(EDITS)
    ]  # fmt: skip

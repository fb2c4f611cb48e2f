"""What methods are checked on: a tiny random Stable Diffusion with minicanvas's tokenizer, texts and hook points, or minicanvas itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bench.check.snapshot import Snapshot
from bench.diffusion.loading import load_model, quiet_libraries
from bench.diffusion.model import DiffusionModel
from bench.diffusion.numerics import invariant_slots
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampled, Sampler
from bench.diffusion.schedule import DDIMSchedule
from bench.interfaces import Erasure, FitContext, Probe
from bench.registry import load_object, method
from bench.session import fit_context
from bench.suites.minicanvas import SUITE, MiniCanvas
from bench.types import Concept, GenerationRequest, Kind

STEPS, SLOTS = 3, 16
CONCEPTS: dict[Kind, tuple[Concept, Concept]] = {
    "style": (Concept("style", "neon"), Concept("style", "sketch")),
    "object": (Concept("object", "fish"), Concept("object", "house")),
}
"""What is removed: the second beside the first."""
CELLS = (("neon", "fish"), ("pop", "fish"), ("neon", "key"), ("pop", "key"))
OTHERS = ("negative-prompt", "sld", "saeuron")
WIDTH, LATENTS, KEPT, PICTURES = 32, 32, 4, 480


@dataclass(frozen=True)
class World:
    """A model and what methods may use to fit."""

    suite: MiniCanvas
    context: FitContext
    sampler: Sampler
    random: bool
    """Whether its weights are random, so that pictures show nothing."""

    @property
    def model(self) -> DiffusionModel:
        """The base model."""
        return self.context.model

    @cached_property
    def requests(self) -> tuple[GenerationRequest, ...]:
        """One picture of each of `CELLS`, whose noise, and thereby `Slots.key`, tells nothing of the cell."""
        requests = [self.suite.request(*cell, seed, STEPS) for seed, cell in enumerate(CELLS, start=1)]
        return tuple(replace(request, noise_key=f"picture {place}") for place, request in enumerate(requests))

    @cached_property
    def snapshot(self) -> Snapshot:
        """The model as it was before any method saw it."""
        return Snapshot(self.model, [request.prompt for request in self.requests])

    @cached_property
    def others(self) -> tuple[list[Row], Tensor]:
        """Rows of the unedited model and of this project's methods that act on text, guidance and activations, and their latents."""
        erasures = [Erasure()]
        for name in OTHERS:
            kind = method(name)
            config = kind.Config(**self.suite.method_settings.get(name, {}))
            erasures.append(kind(config).fit(self.context, [CONCEPTS["object"][0]]))
        rows = [Row(request, erasure) for request in self.requests[:2] for erasure in erasures]
        return rows, self.sample(rows).latents

    @cached_property
    def base(self) -> Tensor:
        """float32 [R, 4, h, w], what the unedited model makes of `requests`."""
        return self.sample([Row(request, Erasure()) for request in self.requests]).latents

    def sample(self, rows: Sequence[Row], dtype: torch.dtype = torch.float32, share: bool = False, probes: Sequence[Probe] = ()) -> Sampled:
        """Rows in UNet calls of the same shape; changed weights, if any row has some, are swapped in for all."""
        weights = next((row.erasure.weights for row in rows if row.erasure.weights is not None), None)
        self.model.sampling_unet(dtype)  # the copy must exist before weights are swapped, to be swapped too
        with self.model.weights(weights.values if weights else {}):
            return replace(self.sampler, dtype=dtype, share=share).all(rows, probes=probes)


def full_world(folder: Path) -> World:
    """Minicanvas with its own weights; `folder` is for what methods keep."""
    return _world(SUITE, load_model(SUITE.model_folder(), torch.device("cpu")), folder, random=False)


def tiny_world(folder: Path) -> World:
    """Random weights, always the same, and random SAEs for them below `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        quiet_libraries()
        model, suite = _tiny_model(), MiniCanvas(folder)
        for name, kinds in _blocks(suite).items():
            _tiny_sae(folder / "saes" / f"unet.{name}", model, [c for c in suite.concepts if c.kind in kinds])
    return _world(suite, model, folder, random=True)


def _world(suite: MiniCanvas, model: DiffusionModel, folder: Path, random: bool) -> World:
    sampler = Sampler(model, torch.float32, SLOTS)
    sampler.slots = invariant_slots(sampler)
    preset = replace(suite.presets["smoke"], steps=STEPS)
    context = replace(fit_context(suite, preset, model, torch.float32, sampler.slots), cache=folder / "cache")
    return World(suite, context, sampler, random)


def _tiny_model() -> DiffusionModel:
    """Blocks and tokens are minicanvas's, so that its hook points and texts are right."""
    folder = SUITE.model_folder()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    text = CLIPTextConfig.from_pretrained(
        folder / "text_encoder", hidden_size=WIDTH, intermediate_size=64, num_attention_heads=2, projection_dim=WIDTH, dtype="float32"
    )
    unet: dict[str, Any] = UNet2DConditionModel.load_config(folder / "unet")
    unet |= {"sample_size": 8, "block_out_channels": (WIDTH,) * 3, "cross_attention_dim": WIDTH, "norm_num_groups": 8}
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=4, sample_size=64, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    return DiffusionModel(tokenizer, CLIPTextModel(text), UNet2DConditionModel.from_config(unet), vae, scheduler, "tiny random")


def _blocks(suite: MiniCanvas) -> dict[str, list[Kind]]:
    """Hook point → the kinds of concepts that are removed there."""
    found: dict[str, list[Kind]] = {}
    for kind, names in suite.assets.hookpoints.items():
        for name in names:
            found.setdefault(name, []).append(kind)
    return found


def _tiny_sae(folder: Path, model: DiffusionModel, concepts: Sequence[Concept]) -> None:
    """An SAE with statistics and detectors that fire in some pictures, all random."""
    room = "methods.sae"
    config = load_object(f"{room}.autoencoder:SAEConfig")(WIDTH, KEPT, num_latents=LATENTS)
    load_object(f"{room}.autoencoder:SparseAutoencoder")(config).save(folder)
    digest = load_object(f"{room}.autoencoder:sae_digest")(folder)
    timesteps = DDIMSchedule.of(model.scheduler, STEPS).timesteps
    means = torch.rand(len(concepts), STEPS, LATENTS)
    counts = torch.full((len(concepts),), 8)
    statistics = load_object(f"{room}.statistics:Statistics")(tuple(map(str, concepts)), timesteps, means, counts, digest, model.digest)
    statistics.save(folder)
    candidates = load_object(f"{room}.calibration:candidates_of")(statistics)
    shows = torch.arange(PICTURES)[:, None] % len(concepts) == torch.arange(len(concepts))
    splits = [(torch.rand(PICTURES, *candidates.shape), shows) for _ in range(3)]
    load_object(f"{room}.calibration:make_detectors")(statistics, candidates, splits).save(folder)

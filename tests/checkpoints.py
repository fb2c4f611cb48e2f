"""Files as others publish them, and fitting the method checkpoint on one, for the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.diffusion.model import DiffusionModel
from bench.interfaces import Erasure, FitContext
from bench.registry import load_object, method
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


def write_checkpoint(kind: str, unet: nn.Module, name: str, path: Path) -> None:
    """Random changes of this UNet: weights, adapters, spm (adapters for texts with `name`), or erasers."""
    found: dict[str, Tensor] = {}
    if kind == "weights":
        keys = {key: value for key, value in unet.named_parameters() if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
        found = {key: value.detach() + 0.5 * value.std() * torch.randn_like(value) for key, value in keys.items()}
    elif kind == "erasers":
        for block, width in ((key, block.norm1.weight.shape[0]) for key, block in unet.named_modules() if hasattr(block, "attn2")):
            eraser = {"down": nn.Linear(width, 8), "up": nn.Linear(8, width)}
            found |= {f"{block}.{part}.{key}": value.detach() for part, layer in eraser.items() for key, value in layer.named_parameters()}
    else:
        for module, layer in load_object("methods.common.adapters:adapted_modules")(unet).items():
            out, read, *kernel = layer.weight.shape
            key = f"lora_unet_{module.replace('.', '_')}"
            found |= {f"{key}.lora_down.weight": 0.3 * torch.randn(1, read, *kernel), f"{key}.lora_up.weight": 0.3 * torch.randn(out, 1)}
    save_file(found, path, {"prompts": name} if kind == "spm" else None)

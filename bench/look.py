"""A look inside the SAE methods of a run, for its report: latents, patches, and what else fires them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.diffusion.loading import load_model
from bench.diffusion.numerics import pick_device
from bench.erasure import load_erasure
from bench.errors import BenchError
from bench.registry import load_object, method
from bench.registry import suite as find_suite
from bench.store import Store
from bench.suites.suite import Preset, Suite
from bench.tables import LOOK
from bench.types import GenerationRequest, Target

OWN, OTHER, POOL = 2, 1, 60
"""Pictures that show the target and that do not; pictures among which those are found that fire a latent most."""
QUALITY = 80


def look(store: Store, labels: Sequence[str], targets: Sequence[str], device: str, say: Callable[[str], None]) -> int:
    """Write `look.json` into a run's folder, and say how many erasures are in it. BenchError if there is none of an SAE method."""
    config, plan = store.config(), store.read_json("plan.json", ["units", "rows"])
    if plan is None:
        raise BenchError(f"{store.folder} has no plan.json: give the run's command again.")
    suite, where = find_suite(config["suite"]), pick_device(device)
    wanted = _wanted(plan, labels, targets)
    model = load_model(suite.model_folder(), where)
    preset = _preset(suite, config)
    dtype, slots = getattr(torch, config["numerics"]["dtype"]), int(config["numerics"]["slots"])
    pool = suite.split_requests("example", POOL, preset.steps)
    erasures, requests = {}, {}
    for label, target, fit in wanted:
        folder = store.folder / "erasures" / fit
        if folder.is_dir():
            erasures[label, target], _ = load_erasure(folder, method(plan["rows"][label]["method"]).parts, where)
            requests[label, target] = _requests(suite, Target.parse(target), preset)
    seen, pictures = load_object("methods.sae.inside:inside")(model, erasures, requests, pool, dtype, slots, say)
    if not seen:
        raise BenchError(f"{store.folder} has no erasure of an SAE method: `look` is for saeuron, saeuron-detect and saemnesia.")
    found = [
        {"method": label, "target": target, **_written(own, requests[label, target], pictures)} for (label, target), own in seen.items()
    ]
    store.write_json(LOOK, {"looks": found})
    return len(found)


def _wanted(plan: Mapping[str, Any], labels: Sequence[str], targets: Sequence[str]) -> list[tuple[str, str, str]]:
    """(label, target, fit) of what is asked for: of all rows and targets, unless some are named."""
    every = {(unit["method"], unit["target"]): unit["fit"] for unit in plan["units"] if unit["target"] and "attack" not in unit}
    found = [
        (label, target, fit) for (label, target), fit in every.items()
        if (not labels or label in labels) and (not targets or target in targets)
    ]  # fmt: skip
    if not found:
        raise BenchError(f"The run has no such rows; it has {', '.join(sorted({label for label, _ in every}))}.")
    return found


def _preset(suite: Suite, config: Mapping[str, Any]) -> Preset:
    preset = suite.presets[config["preset"]]
    return replace(preset, steps=config.get("steps") or preset.steps, seeds=1)


def _requests(suite: Suite, target: Target, preset: Preset) -> list[GenerationRequest]:
    """Of the evaluation's own: some that show the target, some that do not."""
    every = suite.requests(target, preset)
    shows = [request for request in every if target.involves(request.style, request.object)]
    others = [request for request in every if not target.involves(request.style, request.object)]
    return [*shows[:: max(1, len(shows) // OWN)][:OWN], *others[:: max(1, len(others) // OTHER)][:OTHER]]


def _written(seen: Mapping[str, Any], requests: Sequence[GenerationRequest], pool: Tensor) -> dict[str, Any]:
    """As JSON: pictures as WebP, of the pool those alone that stand for a latent."""
    used = sorted({place for latent in seen["latents"] for place in latent["top"]})
    latents = [{**latent, "top": [used.index(place) for place in latent["top"]]} for latent in seen["latents"]]
    pictures = [
        {"style": request.style, "object": request.object, "seed": request.seed, "masks": masks, "base": _webp(own), "edited": _webp(new)}
        for request, masks, own, new in zip(requests, seen["masks"], seen["base"], seen["edited"], strict=True)
    ]
    return {"grid": seen["grid"], "latents": latents, "pictures": pictures, "tops": [_webp(pool[place]) for place in used]}


def _webp(pixels: Tensor) -> str:
    """uint8 [H, W, 3] as base64, at most 128 px."""
    image = Image.fromarray(pixels.numpy())
    image.thumbnail((128, 128))
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()

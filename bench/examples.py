"""Pictures that methods train on: a suite's own, or the base model's where it has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from filelock import FileLock
from safetensors.torch import load, save
from torch import Tensor

from bench.assets import folder
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.files import write_atomic
from bench.interfaces import Erasure, Examples
from bench.suites.suite import Suite
from bench.types import Concept, GenerationRequest, content_hash


def examples(
    suite: Suite, model: DiffusionModel, steps: int, dtype: torch.dtype, slots: int, progress: Callable[[float, str], None],
    concept: Concept, count: int, shown: bool,
) -> Examples:  # fmt: skip
    """See `FitContext.examples`. Their prompts are of the split "example", whose noise and seeds evaluation never uses."""
    requests = suite.example_requests(concept, count, shown, steps)
    prompts = tuple(request.prompt for request in requests)
    name, anchor = (text.rstrip(".") for text in suite.texts(concept).pairs[0])
    anchors = tuple(prompt.replace(name, anchor) for prompt in prompts) if shown else prompts
    pixels = suite.example_pictures(requests)
    if pixels is not None:
        return Examples(model.encode_pictures(torch.from_numpy(pixels)), prompts, anchors)
    return Examples(_sampled(suite, model, requests, dtype, slots, progress), prompts, anchors)


def _sampled(
    suite: Suite, model: DiffusionModel, requests: Sequence[GenerationRequest], dtype: torch.dtype, slots: int,
    progress: Callable[[float, str], None],
) -> Tensor:  # fmt: skip
    """Latents as the base model ends with them, sampled once a machine."""
    numerics = [str(dtype), slots, model.device.type, torch.get_num_threads(), str(torch.__version__)]
    place = (
        folder() / suite.name / "examples" / f"{content_hash([model.digest, numerics, [request.id for request in requests]])}.safetensors"
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.is_file():
            done = 0

            def advance(pictures: int) -> None:
                nonlocal done
                done += pictures
                progress(done / len(requests), f"{len(requests)} pictures to train on")

            found = sample(model, [Row(request, Erasure()) for request in requests], dtype, slots, advance).latents
            write_atomic(place, save({"latents": found.cpu().contiguous()}))
        return load(place.read_bytes())["latents"].to(model.device)

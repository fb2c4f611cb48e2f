"""Pictures that methods train on: a suite's own, or the base model's where it has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from filelock import FileLock
from safetensors.torch import load, save
from torch import Tensor

from bench.assets import cache
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.files import write_atomic
from bench.interfaces import Erasure, Examples
from bench.suites.suite import Suite
from bench.types import Concept, GenerationRequest, content_hash


@dataclass(frozen=True)
class Painter:
    """Where a fit's pictures come from. What the model samples is kept, once a machine."""

    suite: Suite
    model: DiffusionModel
    steps: int
    dtype: torch.dtype
    slots: int
    progress: Callable[[float, str], None] = lambda share, text: None

    def examples(self, concept: Concept, count: int, shown: bool) -> Examples:
        """See `FitContext.examples`. Their prompts are of the split "example", whose noise and seeds evaluation never uses."""
        requests = self.suite.example_requests(concept, count, shown, self.steps)
        prompts = tuple(request.prompt for request in requests)
        anchors = tuple(anchor for _, anchor in self.captions(concept, count)) if shown else prompts
        pixels = self.suite.example_pictures(requests)
        latents = self._sampled(requests) if pixels is None else self.model.encode_pictures(torch.from_numpy(pixels))
        return Examples(latents, prompts, anchors)

    def captions(self, concept: Concept, count: int) -> list[tuple[str, str]]:
        """See `FitContext.captions`."""
        name, anchor = (text.rstrip(".") for text in self.suite.texts(concept).pairs[0])
        prompts = [request.prompt for request in self.suite.example_requests(concept, count, True, self.steps)]
        return [(prompt, prompt.replace(name, anchor)) for prompt in prompts]

    def generate(self, prompts: Sequence[str]) -> Tensor:
        """See `FitContext.generate`."""
        height, width = self.suite.size
        return self._sampled([
            GenerationRequest(prompt, "", "", 1 + k, "generate", self.steps, self.suite.guidance_scale, height, width)
            for k, prompt in enumerate(prompts)
        ])  # fmt: skip

    def _sampled(self, requests: Sequence[GenerationRequest]) -> Tensor:
        """float32 [n, 4, h, w]."""
        numerics = [str(self.dtype), self.slots, self.model.device.type, torch.get_num_threads(), str(torch.__version__)]
        name = content_hash([self.model.digest, numerics, [request.id for request in requests]])
        place = cache(self.suite.name) / "examples" / f"{name}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if not place.is_file():
                write_atomic(place, save({"latents": self._sample(requests).cpu().contiguous()}))
            return load(place.read_bytes())["latents"].to(self.model.device)

    def _sample(self, requests: Sequence[GenerationRequest]) -> Tensor:
        done = 0

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            self.progress(done / len(requests), f"{len(requests)} pictures to train on")

        return sample(self.model, [Row(request, Erasure()) for request in requests], self.dtype, self.slots, advance).latents

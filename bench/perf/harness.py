"""The whole harness beside diffusers' own pipeline, at sampling the same un-edited pictures."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from bench.diffusion.memory import PeakMemory
from bench.diffusion.noise import initial_noise
from bench.diffusion.sampler import Sampler
from bench.engine.worker import Worker
from bench.identity import MethodSpec
from bench.perf.pairs import Case, alternate, ratio
from bench.plan import BASE, Fit, Unit
from bench.registry import method
from bench.scoring import Scorer
from bench.store import Store
from bench.suites.suite import Suite
from bench.types import GenerationRequest

BATCHES = (8, 16, 32, 64)
MEMORY_IMAGES = 16


class Plain:
    """diffusers' pipeline on the same weights, all of it in the sampler's dtype, from the same noise."""

    def __init__(self, sampler: Sampler, requests: Sequence[GenerationRequest]) -> None:
        self.requests, self.batch, model = requests, len(requests), sampler.model
        parts = {name: type(part).from_config(part.config) for name, part in (("unet", model.unet), ("vae", model.vae))}
        parts["text_encoder"] = type(model.text_encoder)(model.text_encoder.config)
        for name, part in parts.items():
            part.load_state_dict(getattr(model, name).state_dict())
            part.to(model.device, sampler.dtype).eval()
        self.pipe = StableDiffusionPipeline(
            **parts, tokenizer=model.tokenizer, scheduler=type(model.scheduler).from_config(model.scheduler.config), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        self.pipe.set_progress_bar_config(disable=True)
        self.eager = self.pipe.unet
        self.compiled = torch.compile(self.pipe.unet, dynamic=False)
        self.noise = initial_noise(requests, model.latent_shape).to(model.device, sampler.dtype)

    def run(self, batch: int | None = None, compiled: bool = False) -> None:
        """All requests, `batch` at a time."""
        self.pipe.unet = self.compiled if compiled else self.eager
        first, batch = self.requests[0], batch or self.batch
        for start in range(0, len(self.requests), batch):
            part = slice(start, start + batch)
            self.pipe(
                [request.prompt for request in self.requests[part]], num_inference_steps=first.steps, guidance_scale=first.guidance_scale,
                latents=self.noise[part], height=first.height, width=first.width, output_type="np",
            )  # fmt: skip

    def best_batch(self, say: Callable[[str], None], compiled: bool = False) -> int:
        """The fastest of those that divide the requests."""
        batches = [batch for batch in BATCHES if len(self.requests) % batch == 0] or [len(self.requests)]
        cases: dict[str, Case] = {str(batch): partial(self.run, batch, compiled) for batch in batches}
        tried = alternate(cases, 2, self.noise.device, lambda text: say(f"plain pipeline, batch of {text}"))
        return int(min(tried, key=lambda name: min(tried[name])))


class Harness:
    """Plain sampling with scores and files: what `run` does for `none`, with nothing to share."""

    def __init__(self, suite: Suite, sampler: Sampler, scorer: Scorer, folder: Path) -> None:
        self.fit = Fit(MethodSpec(BASE, BASE, 1, {}, method(BASE).card, True), None, "perf")
        self.first: float | None = None
        self.worker = Worker(
            suite, Store.create(folder), sampler.model, scorer, replace(sampler, share=False), suite.presets["full"], "sample", 0,
            say=lambda text: None, advance=self._advance, warn=print,
        )  # fmt: skip

    def _advance(self, pictures: int) -> None:
        self.first = self.first or time.perf_counter()

    def first_image(self, requests: Sequence[GenerationRequest]) -> float:
        """Seconds until a picture is sampled, the model loaded and warm."""
        began = time.perf_counter()
        self.run(requests)
        return (self.first or began) - began

    def run(self, requests: Sequence[GenerationRequest], copies: int = 1) -> None:
        """Bundles as a plan makes them, of 64 pictures."""
        self.first = None
        self.worker.model.forget_texts()  # the pipeline encodes its prompts each time too
        whole = [request for _ in range(copies) for request in requests]
        for start in range(0, len(whole), 64):
            self.worker.execute([Unit(self.fit, tuple(whole[start : start + 64]), f"unit-{start}")])


def harness_ratio(
    suite: Suite, sampler: Sampler, scorer: Scorer, requests: Sequence[GenerationRequest], pairs: int, compiled: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Pictures a second, harness ÷ plain pipeline in its best batch: above 1 the harness is faster. Also memory and first picture."""
    device, plain = sampler.model.device, Plain(sampler, requests)
    plain.batch = plain.best_batch(say)
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(suite, sampler, scorer, Path(folder))
        ours = partial(harness.run, requests)
        seconds = alternate({"plain": plain.run, "harness": ours}, pairs, device, say)
        found: dict[str, Any] = {
            "plain_batch": plain.batch, "images": len(requests), "eager": ratio(seconds["plain"], seconds["harness"]),
            "images_per_second": {name: len(requests) / min(own) for name, own in seconds.items()},
        }  # fmt: skip
        found["first_image_seconds"] = harness.first_image(requests)
        found["peak_memory_mb"] = {}
        short = [replace(request, steps=1) for request in requests[:MEMORY_IMAGES]]  # a step more or less takes no memory
        for copies in (1, 4, 16):
            say(f"memory, {copies * len(short)} images")
            with PeakMemory(device) as peak:
                harness.run(short, copies)
            found["peak_memory_mb"][str(copies * len(short))] = peak.peak_mb
        if compiled:
            harness.worker.sampler.compiled = True
            found["plain_compiled_batch"] = plain.best_batch(say, compiled=True)
            both = partial(plain.run, found["plain_compiled_batch"], compiled=True)
            cases: dict[str, Case] = {"plain": both, "harness": ours, "plain eager": plain.run}
            fast = alternate(cases, pairs, device, say)
            found["compiled"] = ratio(fast["plain"], fast["harness"])
            found["compiled_over_plain_eager"] = ratio(fast["plain eager"], fast["harness"])
    return found

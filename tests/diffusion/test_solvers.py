"""Schedulers beside row-wise DDIM: the library's own steps, in lock-step, with noise that is the request's."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
from conftest import SLOTS, request_of
from diffusers import StableDiffusionPipeline

from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import initial_noise
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler, sample
from bench.errors import BenchError
from bench.interfaces import Erasure, FitContext
from bench.registry import method
from bench.suites.minicanvas import SUITE
from bench.types import SCHEDULERS, Concept, GenerationRequest

CELLS = [("sunset", "boat"), ("mosaic", "cup"), ("neon", "fish"), ("pop", "key"), ("frost", "tree")]


def requests(scheduler: str, steps: int = 6) -> list[GenerationRequest]:
    return [replace(request_of(*cell, steps=steps), scheduler=scheduler) for cell in CELLS]


@pytest.mark.parametrize("name", ["lms", "dpm-solver++", "euler"])
def test_equals_the_diffusers_pipeline(name: str, model: DiffusionModel) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(SUITE.model_folder(), local_files_only=True, torch_dtype=torch.float32)
    pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    own = requests(name, 8)[:2]
    ours = sample(model, [Row(request, Erasure()) for request in own], torch.float32, SLOTS).latents
    theirs = pipe(
        [request.prompt for request in own], num_inference_steps=8, guidance_scale=4.0, height=64, width=64, output_type="latent",
        latents=initial_noise(own, model.latent_shape),
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ddim"])
def test_bytes_do_not_depend_on_neighbours(name: str, model: DiffusionModel, context: FitContext) -> None:
    fitted = [Erasure(), method("sld")().fit(context, [Concept("style", "neon")])]
    kind = method("saeuron")
    fitted.append(kind(kind.Config(detection="saeuron-code")).fit(context, [Concept("object", "fish")]))
    rows = [Row(request, erasure) for request in requests(name, 4) for erasure in fitted]
    together = Sampler(model, torch.float32, SLOTS, share=True).all(rows).latents
    assert torch.equal(together.flip(0), sample(model, rows[::-1], torch.float32, SLOTS).latents)
    for index in (0, 7, 14):
        assert torch.equal(together[index], sample(model, [rows[index]], torch.float32, SLOTS).latents[0])


def test_ancestral_noise_is_the_requests(model: DiffusionModel) -> None:
    first, *_ = requests("euler-ancestral")
    plain, again = (sample(model, [Row(first, Erasure())], torch.float32, SLOTS).latents for _ in range(2))
    assert torch.equal(plain, again)
    other = sample(model, [Row(replace(first, seed=2), Erasure())], torch.float32, SLOTS).latents
    deterministic = sample(model, [Row(replace(first, scheduler="euler"), Erasure())], torch.float32, SLOTS).latents
    assert not torch.equal(plain, other)
    assert not torch.allclose(plain, deterministic, atol=1e-2)


def test_what_cannot_be_sampled_together_is_a_sentence(model: DiffusionModel) -> None:
    euler, lms = (Row(requests(name)[0], Erasure()) for name in ("euler", "lms"))
    with pytest.raises(BenchError, match="euler and lms cannot sample together"):
        sample(model, [euler, lms], torch.float32, SLOTS)
    with pytest.raises(BenchError, match="use one --steps"):
        sample(model, [euler, Row(requests("euler", 4)[0], Erasure())], torch.float32, SLOTS)

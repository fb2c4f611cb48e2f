"""SDXL and SDXL-Turbo go through the same loader and sampler as SD 1.x, and give what diffusers' own pipeline gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import miniature_sdxl
import pytest
import torch
from conftest import request_of
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from test_sharing import FromStep
from torch import Tensor

from bench.attack_plan import attack_specs, made_attack
from bench.diffusion import numerics
from bench.diffusion.loading import load_model, model_digest
from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import initial_noise, noise_seed
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler, sample
from bench.diffusion.soft import learned_name
from bench.diffusion.text import PlainText
from bench.diffusion.victim import Victim
from bench.errors import BenchError
from bench.interfaces import Cond, Erasure, FitContext, Probe, Role, TextEdit, Weights
from bench.registry import method
from bench.suites.minicanvas import SUITE
from bench.types import Concept, GenerationRequest
from methods.common.closed_form import TextMap
from methods.negative_prompt import NegativeText
from methods.sld import SafeGuidance

CPU = torch.device("cpu")
PLAIN = Erasure()
SLOTS = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sdxl")
    return {
        "base": miniature_sdxl.model(place / "base"), "turbo": miniature_sdxl.model(place / "turbo", "turbo"),
        "not zero": miniature_sdxl.model(place / "ddim", "ddim", zeros=False),
    }  # fmt: skip


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, DiffusionModel]:
    return {name: load_model(folder, CPU) for name, folder in folders.items()}


def asked(scale: float = 5.0, seed: int = 1, steps: int = 3, scheduler: str = "ddim", obj: str = "fish") -> GenerationRequest:
    size = miniature_sdxl.SIZE
    return replace(request_of("neon", obj, seed, steps, scale), height=size, width=size, scheduler=scheduler)


def theirs(folder: Path, requests: Sequence[GenerationRequest]) -> Tensor:
    """diffusers' pipeline from the same noise."""
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    first = requests[0]
    if first.scheduler == "ddim":
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    size = pipe.unet.config.sample_size
    seeds = [noise_seed(request.seed, f"{request.noise_key}\nsteps") for request in requests]
    return pipe(
        [request.prompt for request in requests], num_inference_steps=first.steps, guidance_scale=first.guidance_scale,
        latents=initial_noise(requests, (4, size, size)), generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        height=first.height, width=first.width, output_type="latent",
    ).images  # fmt: skip


@pytest.mark.parametrize(("name", "scheduler"), [("base", "ddim"), ("turbo", "ddim"), ("turbo", "euler-ancestral"), ("not zero", "ddim")])
@pytest.mark.parametrize("scale", [5.0, 0.0])
def test_equals_the_diffusers_pipeline(
    name: str, scheduler: str, scale: float, folders: dict[str, Path], models: dict[str, DiffusionModel]
) -> None:
    requests = [asked(scale, 1, scheduler=scheduler), asked(scale, 2, scheduler=scheduler, obj="key")]
    expected = theirs(folders[name], requests)
    found = sample(models[name], [Row(request, PLAIN) for request in requests], torch.float32, SLOTS).latents
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_turbo_takes_one_step(folders: dict[str, Path], models: dict[str, DiffusionModel]) -> None:
    requests = [asked(0.0, seed, steps=1, scheduler="ddim") for seed in (1, 2)]
    found = sample(models["turbo"], [Row(request, PLAIN) for request in requests], torch.float32, SLOTS).latents
    torch.testing.assert_close(found, theirs(folders["turbo"], requests), rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class OtherPooled(TextEdit):
    """The states as they are, the pooled text with its sign turned."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        plain = PlainText().encode(model, texts, role, steps)
        return [replace(cond, added={"text_embeds": -cond.added["text_embeds"]}) for cond in plain]


@pytest.mark.parametrize("change", ["prompt", "size", "pooled"])
def test_the_unet_is_told_all_of_it(change: str, models: dict[str, DiffusionModel]) -> None:
    """The prompt's pooled text, and the size that the request names, each matter beside the states."""

    plain = Row(asked(), PLAIN)
    other = {
        "prompt": Row(replace(asked(), prompt="a car"), PLAIN), "size": Row(replace(asked(), width=64), PLAIN),
        "pooled": Row(asked(), Erasure(text=OtherPooled())),
    }[change]  # fmt: skip
    a, b = sample(models["base"], [plain, other], torch.float32, SLOTS).latents
    assert not torch.equal(a, b)


def test_the_empty_text_is_zero_where_the_index_says_so(folders: dict[str, Path], models: dict[str, DiffusionModel]) -> None:
    for name, zero in (("base", True), ("not zero", False)):
        (none,) = PlainText().encode(models[name], [""], "unconditional", 3)
        (asked_for,) = PlainText().encode(models[name], [""], "conditional", 3)
        assert (none.embeds.any() or none.added["text_embeds"].any()) != zero
        assert asked_for.embeds.any()
        assert asked_for.added["text_embeds"].shape == (1, miniature_sdxl.POOLED)
    index = folders["base"] / "model_index.json"
    before = model_digest(folders["base"])
    whole = index.read_text()
    index.write_text(json.dumps({**json.loads(whole), "force_zeros_for_empty_prompt": False}))
    assert model_digest(folders["base"]) != before
    index.write_text(whole)
    assert model_digest(folders["base"]) == before


def all_kinds(scale: float) -> list[Row]:
    matrix = torch.eye(40) + 0.1 * torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    erasures = [PLAIN, Erasure(text=TextMap(matrix)), Erasure(activations=(FromStep(1000, 0.5, ("mid_block.attentions.0",)),))]
    if scale > 1:
        erasures += [Erasure(text=NegativeText("neon")), Erasure(guidance=SafeGuidance(("neon",), 1000.0, 0, 0.01, 0.3, 0.4))]
    return [Row(asked(scale, seed), erasure) for erasure in erasures for seed in (1, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_do_not_depend_on_position_neighbours_or_order(dtype: torch.dtype, models: dict[str, DiffusionModel]) -> None:
    model = models["base"]
    rows = [*all_kinds(5.0), *all_kinds(0.0)]  # with and without guidance side by side
    expected = sample(model, rows, dtype, SLOTS).latents
    assert len({latent.numpy().tobytes() for latent in expected}) == len(rows)
    for order in (list(range(len(rows)))[::-1], [3, 12, 7], [11], [15, 0, 14, 1]):
        assert torch.equal(sample(model, [rows[i] for i in order], dtype, SLOTS).latents, expected[order])


class _Watch(Probe):
    hookpoints = ("mid_block.attentions.0",)

    def __init__(self) -> None:
        self.roles: list[list[int]] = []

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        self.roles.append(role[row >= 0].tolist())


def test_without_guidance_a_picture_takes_one_slot_which_is_the_conditional_one(models: dict[str, DiffusionModel]) -> None:
    rows, watch = [Row(asked(0.0, seed), PLAIN) for seed in range(SLOTS)], _Watch()
    sampler = Sampler(models["turbo"], torch.float32, SLOTS)
    sampler.all(rows, probes=[watch])
    assert (sampler.counts.calls, sampler.counts.slots) == (3, 3 * SLOTS)
    assert watch.roles == [[1] * SLOTS] * 3


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_shared_rows_fork_with_the_same_bytes(scale: float, models: dict[str, DiffusionModel]) -> None:
    model = models["turbo"]
    erasures = [PLAIN, *(Erasure(activations=(FromStep(below, 0.5, ("up_blocks.0.attentions.1",)),)) for below in (1000, 400, 0))]
    rows = [Row(asked(scale, seed), erasure) for seed in (1, 2) for erasure in erasures]
    sampler = Sampler(model, torch.float32, SLOTS, share=True)
    assert torch.equal(sampler.all(rows).latents, sample(model, rows, torch.float32, SLOTS).latents)
    assert sampler.counts.steps == 2 * (3 + 3 + 1), "the base, one that forks at once, one at the last of three steps"


def test_what_acts_through_guidance_is_refused_without_it(models: dict[str, DiffusionModel]) -> None:
    for row, name in zip(all_kinds(5.0)[-4::2], ("NegativeText", "SafeGuidance"), strict=True):
        with pytest.raises(BenchError, match=f"{name} acts through guidance, and at a guidance scale of 1 there is none"):
            sample(models["base"], [Row(asked(1.0), row.erasure)], torch.float32, SLOTS)
    assert sample(models["base"], [Row(asked(1.0), PLAIN)], torch.float32, 1).latents.isfinite().all()


@dataclass(frozen=True)
class Forgetful(TextEdit):
    """Makes conditions of its own, with the states alone."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        return [Cond(state[None], torch.zeros(steps, dtype=torch.int64)) for state in model.text_states(texts)]


def test_an_edit_that_loses_the_pooled_text_is_a_sentence(models: dict[str, DiffusionModel]) -> None:
    with pytest.raises(BenchError, match=r"Forgetful loses text_embeds.*dataclasses\.replace"):
        sample(models["base"], [Row(asked(), Erasure(text=Forgetful()))], torch.float32, SLOTS)


def test_attacks_that_follow_the_loss_are_one_sentence(models: dict[str, DiffusionModel]) -> None:
    with pytest.raises(BenchError, match=r"two text encoders.*Attacks by prompts alone"):
        Victim(models["base"], [Row(asked(), PLAIN)], torch.float32)
    for name in ("unlearndiffatk", "ring-a-bell", "mma", "p4d-n", "cce"):
        with pytest.raises(BenchError, match=r"two text encoders.*leave it out.*go on"):
            made_attack(attack_specs([name], "quick")[0]).check(models["base"], [])
    for name in ("random", "seed-search", "paraphrase"):
        made_attack(attack_specs([name], "quick")[0]).check(models["base"], [])
    learned = replace(asked(), prompt=f"A fish, {learned_name(torch.ones(16))}.")
    with pytest.raises(BenchError, match="two text encoders: learned tokens"):
        sample(models["base"], [Row(learned, PLAIN)], torch.float32, SLOTS)


def test_weights_of_the_second_encoder_are_swapped_and_put_back(models: dict[str, DiffusionModel]) -> None:
    model = models["base"]
    before = model.encode(["a fish"])[0]
    name, value = next(iter(model.text_encoder_2.named_parameters()))
    with model.weights(Weights({f"text_encoder_2.{name}": value + 1}).values):
        assert not torch.equal(model.encode(["a fish"])[0].added["text_embeds"], before.added["text_embeds"])
    assert torch.equal(model.encode(["a fish"])[0].added["text_embeds"], before.added["text_embeds"])
    assert torch.equal(model.encode(["a fish"])[0].states, before.states)


def test_methods_that_train_weights_or_map_texts_fit(models: dict[str, DiffusionModel]) -> None:
    model = models["base"]
    context = FitContext(model, SUITE.texts, seed=0, steps=3, guidance_scale=5.0)
    rows = [Row(asked(), PLAIN)]
    plain = sample(model, rows, torch.float32, SLOTS).latents
    esd, uce = method("esd"), method("uce")
    trained = esd(esd.Config(iterations=2, trajectories=2, learning_rate=1e-3)).fit(context, [Concept("style", "neon")])
    with model.weights(trained.weights.values):
        assert not torch.equal(sample(model, rows, torch.float32, SLOTS).latents, plain)
    assert torch.equal(sample(model, rows, torch.float32, SLOTS).latents, plain)
    texts, weights = (uce(uce.Config(apply=where)).fit(context, [Concept("style", "neon")]) for where in ("text", "weights"))
    mapped = sample(model, [Row(asked(), texts)], torch.float32, SLOTS).latents
    with model.weights(weights.weights.values):
        torch.testing.assert_close(sample(model, rows, torch.float32, SLOTS).latents, mapped, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(mapped, plain, atol=1e-2)


def test_calls_are_timed_as_they_are_made(models: dict[str, DiffusionModel]) -> None:
    sampler = Sampler(models["base"], torch.float32, 4)
    assert [len(value) for value in numerics.call_inputs(sampler)] == [4] * 4
    assert numerics.call_seconds(sampler)[0] > 0
    assert numerics.invariant_slots(sampler) >= 4


def lose(folder: Path, name: str, key: str) -> None:
    path = next((folder / name).glob("*.safetensors"))
    tensors = load_file(path)
    del tensors[next(own for own in tensors if own.endswith(key))]
    save_file(tensors, path, metadata={"format": "pt"})


def index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "text_encoder_2 holds no"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "tokenizer_2 cannot be read"),
        (lambda folder: lose(folder, "text_encoder_2", "text_projection.weight"), r"text_encoder_2.*lacks text_projection\.weight"),
        (lambda folder: lose(folder, "unet", "add_embedding.linear_1.bias"), r"unet.*lacks add_embedding"),
        (lambda folder: index(folder, text_encoder_2=[None, None]), r"unet reads \[40, 'text_time', 72\], the text encoders write \[16,"),
        (lambda folder: (folder / "model_index.json").write_text("{"), r"model_index\.json cannot be read"),
    ],
    ids=["encoder", "tokenizer", "projection", "unet", "not-xl", "index"],
)
def test_a_damaged_folder_is_a_sentence(damage: Callable[[Path], None], named: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["base"], tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(BenchError, match=f"{named}.*(restore|build)"):
        load_model(tmp_path / "model", CPU)

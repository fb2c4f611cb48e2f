"""Every form that unlearned models are published in gives the pictures that its tensors put in by hand give; a wrong file is a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import miniature
import pytest
import torch
from checkpoints import FISH, NEON, fitted
from commands import bench
from conftest import request_of
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.erasure import load_erasure, pack
from bench.errors import BenchError
from bench.files import sha256_file
from bench.interfaces import Erasure
from bench.registry import load_object, method

CPU = torch.device("cpu")
REQUESTS = [request_of("neon", "fish", steps=2), request_of("pop", "key", steps=2)]
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load_model(miniature.model(tmp_path_factory.mktemp("mini")), CPU)


@pytest.fixture(scope="module")
def unlearned() -> dict[str, nn.Module]:
    """The same model after some fine-tuning: cross-attention keys, and one bias of the text encoder."""
    parts = miniature.parts()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in parts["unet"].named_parameters():
            if name.endswith("attn2.to_k.weight"):
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return parts


@pytest.fixture(scope="module")
def other_text() -> CLIPTextModel:
    text: CLIPTextModel = miniature.parts()["text_encoder"]
    with torch.no_grad():
        next(value for name, value in text.named_parameters() if name.endswith("final_layer_norm.bias")).add_(1.0)
    return text


def latents(model: DiffusionModel, erasure: Erasure) -> Tensor:
    with model.weights(erasure.weights.values if erasure.weights else {}):
        return sample(model, [Row(request, erasure) for request in REQUESTS], torch.float32, 4).latents


def by_hand(parts: Mapping[str, object]) -> Tensor:
    """Of a model that consists of these networks from the start."""
    own = {**miniature.parts(), **parts}
    model = DiffusionModel(own["tokenizer"], own["text_encoder"], own["unet"], own["vae"], own["scheduler"])
    return latents(model, Erasure())


def keys_only(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: value.clone() for name, value in tensors.items() if "attn2.to_k" in name}


def forms(folder: Path, unlearned: Mapping[str, nn.Module]) -> dict[str, Path]:
    """The unlearned UNet in every form."""
    unet = {name: value.clone() for name, value in unlearned["unet"].state_dict().items()}
    folder.mkdir(exist_ok=True)
    torch.save(unet, folder / "full.pt")
    save_file(unet, folder / "full.safetensors")
    save_file(keys_only(unet), folder / "partial.safetensors")
    torch.save({"unet": keys_only(unet), "modifier_token": {}}, folder / "delta.bin")
    whole = miniature.compvis(folder / "compvis" / "whole.ckpt", unlearned)
    state = torch.load(whole, weights_only=True)["state_dict"]
    torch.save({"state_dict": keys_only(state)}, folder / "compvis-delta.ckpt")
    unlearned["unet"].save_pretrained(folder / "unet")
    miniature.StableDiffusionPipeline(
        **unlearned, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder / "pipeline")  # fmt: skip
    names = (
        "full.pt",
        "full.safetensors",
        "partial.safetensors",
        "delta.bin",
        "compvis/whole.ckpt",
        "compvis-delta.ckpt",
        "unet",
        "pipeline",
    )
    return {name: folder / name for name in names}


def test_every_form_of_weights_is_the_swap_by_hand(tmp_path: Path, mini: DiffusionModel, unlearned: dict[str, nn.Module]) -> None:
    wanted = by_hand({"unet": unlearned["unet"]})
    assert not torch.equal(wanted, by_hand({}))
    for name, path in forms(tmp_path / "forms", unlearned).items():
        erasure = fitted(mini, path)
        assert erasure.weights is not None, name
        assert all(key.endswith("attn2.to_k.weight") for key in erasure.weights.values), "what equals the model's own is left out"
        assert torch.equal(latents(mini, erasure), wanted), name
        pack(erasure).save(tmp_path / "saved" / name.replace("/", "-"))
        again, _ = load_erasure(tmp_path / "saved" / name.replace("/", "-"), method("checkpoint").parts, CPU)
        assert torch.equal(latents(mini, again), wanted), name


def test_half_precision_leaves_what_was_not_changed_alone(tmp_path: Path, mini: DiffusionModel, unlearned: dict[str, nn.Module]) -> None:
    save_file({name: value.half() for name, value in unlearned["unet"].state_dict().items()}, tmp_path / "half.safetensors")
    erasure = fitted(mini, tmp_path / "half.safetensors")
    assert erasure.weights is not None
    assert all(key.endswith("attn2.to_k.weight") for key in erasure.weights.values)
    torch.testing.assert_close(latents(mini, erasure), by_hand({"unet": unlearned["unet"]}), rtol=1e-2, atol=1e-2)


def test_text_encoders(tmp_path: Path, mini: DiffusionModel, other_text: CLIPTextModel) -> None:
    other_text.save_pretrained(tmp_path / "text")
    state = {name.removeprefix("text_model."): value for name, value in other_text.state_dict().items()}
    changed = "final_layer_norm.bias"
    torch.save({"text_encoder": {f"text_model.{changed}": state[changed]}, "unet": {}}, tmp_path / "delta.bin")
    compvis = {f"cond_stage_model.transformer.text_model.{changed}": state[changed], "model.diffusion_model.out.2.bias": torch.ones(4)}
    torch.save({"state_dict": compvis, "global_step": 3}, tmp_path / "compvis.ckpt")
    wanted = by_hand({"text_encoder": other_text})
    for path in (tmp_path / "text", tmp_path / "delta.bin"):
        erasure = fitted(mini, path)
        assert erasure.weights is not None
        assert [name.split(".")[-2:] for name in erasure.weights.values] == [["final_layer_norm", "bias"]]
        assert torch.equal(latents(mini, erasure), wanted)
    both = fitted(mini, tmp_path / "compvis.ckpt").weights
    assert both is not None
    assert sorted(name.partition(".")[0] for name in both.values) == ["text_encoder", "unet"]


def test_names_of_compvis_are_those_of_diffusers_own_converter() -> None:
    # SD 1.5's levels: three with attention, and the two sides mirrored.
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    own = unet.state_dict()
    names = load_object("methods.common.compvis:unet_names")(own, 2)
    assert sorted(names.values()) == sorted(own)
    converted = convert_ldm_unet_checkpoint({theirs: own[name] for theirs, name in names.items()}, dict(unet.config))
    assert converted.keys() == own.keys()
    assert all(converted[name] is own[name] for name in own)


# Adapters


def lora(model: DiffusionModel, rank: int = 2, alpha: float = 1.0) -> tuple[Tensors, Tensors]:
    """A file's tensors, and what they add to weights."""
    generator = torch.Generator().manual_seed(2)
    tensors: Tensors = {}
    added: Tensors = {}
    for name, module in load_object("methods.common.adapters:adapted_modules")(model.unet).items():
        out, read, *kernel = module.weight.shape
        down, up = 0.3 * torch.randn(rank, read, *kernel, generator=generator), 0.3 * torch.randn(out, rank, *kernel, generator=generator)
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
        added[f"{name}.weight"] = (alpha / rank * up.flatten(1) @ down.flatten(1)).view(module.weight.shape)
    return tensors, added


def with_added(added: Mapping[str, Tensor], scale: float) -> Tensor:
    unet = miniature.parts()["unet"]
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if name in added:
                value += scale * added[name]
    return by_hand({"unet": unet})


def test_a_plain_lora_acts_with_scale_one(tmp_path: Path, mini: DiffusionModel) -> None:
    tensors, added = lora(mini)
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_network_dim": "2"})
    erasure = fitted(mini, tmp_path / "lora.safetensors")
    assert erasure.weights is None
    assert erasure.text is None
    torch.testing.assert_close(latents(mini, erasure), with_added(added, 1.0), rtol=1e-3, atol=1e-3)


def test_a_lora_as_diffusers_saves_it_is_the_same(tmp_path: Path, mini: DiffusionModel) -> None:
    tensors, added = lora(mini, rank=2, alpha=2.0)
    modules = {f"lora_unet_{name.replace('.', '_')}": name for name in load_object("methods.common.adapters:adapted_modules")(mini.unet)}
    own = {}
    for name, value in tensors.items():
        module, _, part = name.partition(".")
        if part != "alpha":
            own[f"{modules[module]}.{part.replace('lora_down', 'lora_A').replace('lora_up', 'lora_B')}"] = value
    save_file({f"unet.{name}": value for name, value in own.items()}, tmp_path / "pipeline.safetensors")
    save_file(own, tmp_path / "unet.safetensors")
    for file in ("pipeline.safetensors", "unet.safetensors"):
        torch.testing.assert_close(latents(mini, fitted(mini, tmp_path / file)), with_added(added, 1.0), rtol=1e-3, atol=1e-3)


def test_an_spm_acts_as_strongly_as_the_prompt_is_like_its_texts(tmp_path: Path, mini: DiffusionModel) -> None:
    tensors, added = lora(mini, rank=1)
    save_file(tensors, tmp_path / "spm.safetensors", {"prompts": "key,umbrella", "rank": "1", "alpha": "1.0"})
    erasure = fitted(mini, tmp_path / "spm.safetensors")
    found = latents(mini, erasure)
    states = mini.text_states([request.prompt for request in REQUESTS] + ["key", "umbrella"]).flatten(1)
    likeness = torch.cosine_similarity(states[:2, None], states[None, 2:], dim=-1).max(1).values
    for k, gamma in enumerate([float(likeness[0]), 1.0]):  # the second prompt has the token of "key"
        torch.testing.assert_close(found[k], with_added(added, gamma)[k], rtol=1e-3, atol=1e-3)
    squared = latents(mini, fitted(mini, tmp_path / "spm.safetensors", preset="published-code"))
    torch.testing.assert_close(squared[0], with_added(added, float(likeness[0]) ** 2)[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(squared[1], found[1])


# Receler


class Erased(nn.Module):
    def __init__(self, layer: nn.Module, eraser: nn.Module) -> None:
        super().__init__()
        self.layer, self.eraser = layer, eraser

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        x: Tensor = self.layer(*args, **kwargs)
        return x + self.eraser(x)


def test_erasers_stand_after_cross_attention(tmp_path: Path, mini: DiffusionModel) -> None:
    torch.manual_seed(3)
    unet = miniature.parts()["unet"]
    blocks = {name: module for name, module in unet.named_modules() if type(module).__name__ == "BasicTransformerBlock"}
    file = {}
    for name, block in blocks.items():
        eraser = nn.Sequential(nn.Linear(miniature.CHANNELS, 8), nn.GELU(), nn.Linear(8, miniature.CHANNELS))
        own = {key.replace("0.", "down.").replace("2.", "up."): value.clone() for key, value in eraser.state_dict().items()}
        file[name], block.attn2 = own, Erased(block.attn2, eraser)
    torch.save(file, tmp_path / "receler.pt")
    erasure = fitted(mini, tmp_path / "receler.pt")
    assert erasure.weights is None
    torch.testing.assert_close(latents(mini, erasure), by_hand({"unet": unet}), rtol=1e-4, atol=1e-4)
    pack(erasure).save(tmp_path / "saved")
    again, _ = load_erasure(tmp_path / "saved", method("checkpoint").parts, CPU)
    assert torch.equal(latents(mini, again), latents(mini, erasure))
    beside = sample(mini, [Row(request, own) for request in REQUESTS for own in (Erasure(), erasure)], torch.float32, 4).latents
    assert torch.equal(beside[::2], latents(mini, Erasure()))
    assert torch.equal(beside[1::2], latents(mini, erasure))


# Paths


def test_row_wise_is_known_from_the_files(tmp_path: Path, mini: DiffusionModel) -> None:
    kind = method("checkpoint")
    tensors, _ = lora(mini)
    for name in ("neon", "fish"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    torch.save({"conv_in.bias": torch.ones(miniature.CHANNELS)}, tmp_path / "neon.pt")
    assert kind(kind.Config(path=tmp_path / "{concept}.safetensors")).row_wise
    assert kind(kind.Config(path=tmp_path / "fish.safetensors")).row_wise
    assert not kind(kind.Config(path=tmp_path / "neon.pt")).row_wise
    assert not kind(kind.Config(path=tmp_path / "{concept}.pt")).row_wise
    assert not kind(kind.Config()).row_wise


def test_a_concept_in_the_path_is_the_one_that_is_removed(tmp_path: Path, mini: DiffusionModel) -> None:
    for value, name in enumerate(("neon", "fish"), 1):
        torch.save({"conv_in.bias": torch.full((miniature.CHANNELS,), float(value))}, tmp_path / f"{name}.pt")
    for value, concept in enumerate((NEON, FISH), 1):
        weights = fitted(mini, tmp_path / "{concept}.pt", concept).weights
        assert weights is not None
        assert float(weights.values["unet.conv_in.bias"][0]) == value
    assert fitted(mini, tmp_path / "neon.pt", NEON, FISH).weights is not None
    with pytest.raises(BenchError, match="names one concept, not neon and fish at once"):
        fitted(mini, tmp_path / "{concept}.pt", NEON, FISH)


def test_a_run_of_checkpoints(tmp_path: Path, model: DiffusionModel) -> None:
    tensors, _ = lora(model)
    save_file({name: 0.1 * tensor for name, tensor in tensors.items()}, tmp_path / "spm.safetensors", {"prompts": "fish"})
    for name in ("neon", "fish"):
        save_file({"conv_out.bias": torch.full((4,), 0.1)}, tmp_path / f"{name}.safetensors")
    methods = "checkpoint:spm.safetensors,checkpoint:{concept}.safetensors:base=minicanvas"
    arguments = ("run", "--preset", "smoke", "--steps", "2", "--batch-size", "4", "--dtype", "float32", "--methods", methods)
    found = bench(*arguments, "--concepts", "neon,fish", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    records = {
        record["label"]: record for record in map(json.loads, (path.read_text() for path in (tmp_path / "run" / "records").iterdir()))
    }
    assert records.keys() == {"none", "checkpoint:spm.safetensors", "checkpoint:{concept}.safetensors:base=minicanvas"}
    named = records["checkpoint:{concept}.safetensors:base=minicanvas"]
    assert named["config"]["base"] == "minicanvas"
    assert named["inputs"]["style:neon"]["checkpoint"] == sha256_file(tmp_path / "neon.safetensors")
    assert named["inputs"]["object:fish"]["checkpoint"] == sha256_file(tmp_path / "fish.safetensors")
    assert not any(record["missing"] for record in records.values())

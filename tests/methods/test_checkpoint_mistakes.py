"""A file that is no checkpoint of this model, damaged or hostile, is one sentence, and nothing of it is run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import miniature
import pytest
import torch
from checkpoints import NEON, fitted, own_context
from commands import bench

from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.errors import BenchError
from bench.registry import method


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load_model(miniature.model(tmp_path_factory.mktemp("mini")), torch.device("cpu"))


class _Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.place}",)


def another_base(path: Path) -> None:
    parts = miniature.parts()
    torch.manual_seed(7)
    for module in parts["unet"].modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.reset_parameters()
    torch.save(parts["unet"].state_dict(), path)


def part_of_another_base(left: Callable[[str], bool]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        another_base(path)
        torch.save({name: value for name, value in torch.load(path, weights_only=True).items() if left(name)}, path)

    return write


def saved(tensors: Mapping[str, object]) -> Callable[[Path], None]:
    return lambda path: torch.save(dict(tensors), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (another_base, r"is of another base model: the cosine of its UNet's weights with this model's is -?0.0\d"),
        (part_of_another_base(lambda name: name != "conv_in.bias"), "is of another base model"),
        (part_of_another_base(lambda name: name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))), "is of another base model"),
        (lambda path: torch.save(miniature.parts()["unet"].state_dict(), path), "holds the unedited model"),
        (saved({"layer.weight": torch.ones(2)}), "no weights of a kind that is known .its first name is layer.weight"),
        (saved({}), "no weights of a kind that is known .it is empty"),
        (saved({"state_dict": {"model.diffusion_model.x": 3, "first_stage_model.y": torch.ones(2)}}), "no weights of a kind that is known"),
        (saved({"down_blocks.9.conv.weight": torch.ones(2)}), '1 that this model lacks, such as "unet.down_blocks.9.conv.weight"'),
        (saved({"unet": {"conv_in.bias": torch.ones(32)}, "modifier_token": {"<new1>": torch.ones(32)}}), '"modifier_token.<new1>"'),
        (saved({"conv_in.bias": torch.ones(7)}), r'"unet.conv_in.bias" of shape \[7\], this model \[32\]'),
        (saved({"lora_unet_mid_block_x.lora_down.weight": torch.ones(1, 32)}), "adapts nothing within the transformer blocks"),
        (saved({"lora_te_text_model_x.lora_down.weight": torch.ones(1, 32)}), "adapts nothing within the transformer blocks"),
        (saved({"unet.mid.x.lora_A.weight": torch.ones(1, 32), "unet.mid.x.lora_B.weight": torch.ones(32, 1)}), "lora_unet_mid_x"),
        (saved({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(1, 32)}), "only one factor"),
        (saved({"mid.transformer_blocks.0": {"down.weight": torch.ones(8, 32)}}), "an eraser at .*which this UNet lacks"),
        (saved({"down_blocks.0.attentions.0.transformer_blocks.0": {"down.bias": torch.ones(8)}}), "of shapes .* which do not fit"),
        (saved({"W_dec": torch.ones(2), "encoder.weight": torch.ones(2)}), "--set saeuron.sae=FOLDER"),
        (lambda path: path.write_bytes(b"no tensors"), "cannot be read as tensors"),
        (lambda path: torch.save([torch.ones(2)], path), "it is a list, no dictionary"),
        (lambda path: None, "There is no file or folder"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(write: Callable[[Path], object], message: str, tmp_path: Path, mini: DiffusionModel) -> None:
    write(tmp_path / "file.pt")
    with pytest.raises(BenchError, match=message):
        fitted(mini, tmp_path / "file.pt")


def test_a_file_that_would_run_code_does_not(tmp_path: Path, mini: DiffusionModel) -> None:
    torch.save({"conv_in.bias": _Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Evil(tmp_path / "ran"), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(BenchError, match=r"cannot be read as tensors .it asks for posix.system") as caught:
            fitted(mini, tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_folders_of_other_things_are_one_sentence(tmp_path: Path, mini: DiffusionModel) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    for name, message in (("sae", "--set saeuron.sae=FOLDER"), ("other", "no CLIP text encoder"), ("hollow", "holds no weights")):
        with pytest.raises(BenchError, match=message):
            fitted(mini, tmp_path / name)
    with pytest.raises(BenchError, match="needs a file or folder"):
        method("checkpoint")().fit(own_context(mini), [NEON])


def test_another_base_is_taken_when_asked(tmp_path: Path, mini: DiffusionModel) -> None:
    another_base(tmp_path / "file.pt")
    erasure = fitted(mini, tmp_path / "file.pt", other_base=True)
    assert abs(erasure.notes["like_base"]) < 0.1
    assert erasure.notes["changed"] > 0.5 * erasure.notes["weights"]


@pytest.mark.parametrize(
    ("variant", "concepts", "message"),
    [
        ("checkpoint:nowhere.pt", "neon", "There is no file or folder"),
        ("checkpoint", "neon", "needs a file or folder: checkpoint:PATH"),
        ("checkpoint:damaged.pt", "neon", "cannot be read as tensors"),
        ("checkpoint:{concept}.pt", "neon+fish", "names one concept, not"),
        ("checkpoint:damaged.pt:bas=sd", "neon", 'did you mean "base"'),
        ("uce,checkpoint:unknown.pt", "neon", '1 that this model lacks, such as "unet.down_blocks.7'),
        ("uce,checkpoint:larger.pt", "neon", "of shape [320], this model [64]: it is of another model"),
    ],
)
def test_mistakes_end_before_anything_is_sampled(variant: str, concepts: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.pt").write_bytes(b"x")
    torch.save({"down_blocks.7.resnets.0.conv1.weight": torch.ones(2)}, tmp_path / "unknown.pt")
    torch.save({"conv_in.bias": torch.ones(320)}, tmp_path / "larger.pt")
    found = bench("run", "--preset", "smoke", "--methods", variant, "--concepts", concepts, "--out", "run", cwd=tmp_path)
    assert found.returncode == 2
    assert message in " ".join(found.stderr.split())
    assert not (tmp_path / "run").exists()

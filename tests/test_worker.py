"""What a device does with fits: kept, read back, made again where they cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from bench.diffusion.model import DiffusionModel
from bench.diffusion.sampler import Sampler
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.identity import MethodSpec
from bench.plan import Fit
from bench.registry import method
from bench.store import Store
from bench.suites.minicanvas import SUITE
from bench.types import Target


def worker(folder: Path, model: DiffusionModel) -> Worker:
    """One that only fits."""
    scorer = cast(Any, None)
    sampler = Sampler(model, torch.float32, 8)
    return Worker(
        SUITE, Store.create(folder), model, scorer, sampler, SUITE.presets["smoke"], "none", 0, print, lambda pictures: None, print
    )


def fit_with(saes: Path) -> Fit:
    kind = method("saeuron")
    config = kind.Config(sae=saes, detection="saeuron-code").model_dump(mode="json")
    spec = MethodSpec("saeuron", "saeuron", kind.version, config, kind.card, True, paths=("sae",))
    return Fit(spec, Target.parse("object:fish"), "the-same")


def test_an_erasure_whose_sae_has_moved_is_fitted_again(tmp_path: Path, model: DiffusionModel) -> None:
    """A path is no part of an identity: the same fit may be asked for with its files elsewhere."""
    assert SUITE.assets.sae_folder is not None
    shutil.copytree(SUITE.assets.sae_folder, tmp_path / "here")
    one = worker(tmp_path / "run", model)
    first = one.erasure(fit_with(tmp_path / "here")).activations[0]
    again = one.erasure(fit_with(tmp_path / "nowhere")).activations[0]
    assert again.saes == first.saes, "read back: what it names is still there"
    shutil.move(tmp_path / "here", tmp_path / "there")
    with pytest.raises(BenchError, match="holds no SAE"):
        one.erasure(fit_with(tmp_path / "nowhere"))
    moved = one.erasure(fit_with(tmp_path / "there")).activations[0]
    assert moved.saes == tuple(name.replace("here", "there") for name in first.saes)
    assert torch.equal(moved.latents, first.latents)


def test_a_damaged_erasure_is_fitted_again(tmp_path: Path, model: DiffusionModel) -> None:
    assert SUITE.assets.sae_folder is not None
    one, fit = worker(tmp_path, model), fit_with(SUITE.assets.sae_folder)
    first = one.erasure(fit).activations[0]
    (tensors,) = (tmp_path / "erasures" / "the-same").glob("*.safetensors")
    tensors.write_bytes(b"damage")
    assert torch.equal(one.erasure(fit).activations[0].factors, first.factors)

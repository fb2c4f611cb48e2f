"""Training SAEs on streamed activations: the loss by hand, resume, and statistics against what was really seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from bench.cli import app
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.errors import BenchError
from bench.interfaces import Erasure, Probe
from bench.suites.minicanvas import SUITE
from methods.sae.autoencoder import SAEConfig, SparseAutoencoder, folder_of, load_sae
from methods.sae.build import SAEBuild
from methods.sae.statistics import load_statistics, membership_of
from methods.sae.training import SAERecipe, SAETrainer, SAETraining, geometric_median, sae_loss

HOOK, STEPS = "mid_block.attentions.0", 3
RECIPE = SAERecipe(k=4, expansion_factor=2, rounds=2, pictures=4, steps=8, batch=64, learning_rate=1e-3, dead_tokens=100, halves="both")
PICTURES = {"statistics": 36, "select": 24, "calibrate": 60, "verify": 24}


def split(name: str, count: int, start: int) -> Any:
    return SUITE.split_requests(name, count, STEPS, start)


def training(model: DiffusionModel, work: Path, recipe: SAERecipe = RECIPE) -> SAETraining:
    return SAETraining(model, (HOOK,), recipe, lambda n, s: split("train", n, s), work, torch.float32, 16, lambda text: None)


@pytest.mark.parametrize("target", ["residual", "published-code"])
def test_loss_by_hand(target: str) -> None:
    torch.manual_seed(1)
    sae = SparseAutoencoder(SAEConfig(6, 2, num_latents=10))
    sae.b_dec.data.normal_()
    x = torch.randn(5, 6)
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[1, 4]] = True
    loss, fvu, fired = sae_loss(sae, x, dead, SAERecipe(k=2, auxk_target=target))
    weight, w_dec, b_dec = (t.detach().double().numpy() for t in (sae.encoder.weight, sae.W_dec, sae.b_dec))
    xs = x.double().numpy()
    z = np.maximum((xs - b_dec) @ weight.T, 0)
    kept = z * (z >= np.sort(z.flatten())[-10])
    error = kept @ w_dec + b_dec - xs
    variance = ((xs - xs.mean(0)) ** 2).sum()
    own = np.where(dead.numpy(), z, 0)  # two dead latents, up to d_in / 2 = 3 of them may explain
    explained = own @ w_dec
    missed = explained + error if target == "residual" else explained + b_dec - error
    expected_fvu = (error**2).sum() / variance
    assert float(fvu) == pytest.approx(expected_fvu, rel=1e-5)
    assert float(loss.detach()) == pytest.approx(expected_fvu + (2 / 3) * (missed**2).sum() / variance / 32, rel=1e-5)
    assert int(fired.sum()) == int((kept > 0).sum()) <= 10


def test_geometric_median_is_robust() -> None:
    x = torch.cat([torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), torch.full((20, 3), 1e3)])
    assert geometric_median(x).norm() < 0.5


def test_training_reconstructs_and_keeps_decoder_rows_unit() -> None:
    torch.manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(24, 16), dim=1)
    codes = torch.rand(4096, 24) * (torch.rand(4096, 24) < 0.1)
    trainer = SAETrainer(16, SAERecipe(k=4, expansion_factor=2, steps=300, learning_rate=3e-3), torch.device("cpu"))
    for _ in range(300):
        trainer.step(codes @ dictionary)
    torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(32))
    assert trainer.curves.fvu[-1] < 0.25 < trainer.curves.fvu[0]
    assert trainer.curves.l0[-1] <= 4.01


class _StopError(Exception):
    pass


def test_an_interrupted_training_gives_the_same_sae(model: DiffusionModel, tmp_path: Path) -> None:
    whole = training(model, tmp_path / "whole").run()[HOOK]
    broken = training(model, tmp_path / "broken")

    def stop(text: str) -> None:
        if text.startswith("round 1/2 done"):
            raise _StopError

    with pytest.raises(_StopError):
        replace(broken, say=stop).run()
    again = broken.run()[HOOK]
    assert again.done == whole.done == RECIPE.steps
    assert torch.equal(again.sae.W_dec, whole.sae.W_dec)
    with pytest.raises(BenchError, match="of another model"):
        training(model, tmp_path / "whole", RECIPE.model_copy(update={"k": 5})).run()
    with pytest.raises(BenchError, match="other hook points, steps, dtype"):
        replace(training(model, tmp_path / "whole"), dtype=torch.bfloat16).run()


class _Recorder(Probe):
    hookpoints = (HOOK,)

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        self.seen.append((step, x_out.clone(), row, role))


def test_statistics_are_the_means_of_what_was_sampled(model: DiffusionModel, tmp_path: Path) -> None:
    concepts = [c for c in SUITE.concepts if c.kind == "object"]
    build = SAEBuild(model, {HOOK: concepts}, split, RECIPE, tmp_path, torch.float32, 16, STEPS, PICTURES, lambda text: None)
    build.run(["train", "statistics", "calibration"])
    sae = load_sae(folder_of(tmp_path, HOOK), torch.device("cpu"))
    found = load_statistics(folder_of(tmp_path, HOOK), sae.digest, model.digest)

    requests, recorder = split("statistics", 36, 0), _Recorder()
    sample(model, [Row(request, Erasure()) for request in requests], torch.float32, 16, probes=[recorder])
    expected = torch.zeros(12, STEPS, sae.config.latents)
    for step, x_out, row, role in recorder.seen:
        for slot in ((row >= 0) & (role == 1)).nonzero().flatten().tolist():
            tokens = x_out[slot].flatten(1).T
            z = torch.relu((tokens - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias)
            z[z < z.topk(4, dim=1).values[:, -1:]] = 0
            index = [str(c) for c in concepts].index(f"object:{requests[int(row[slot])].object}")
            expected[index, step] += z.mean(0)
    counts = membership_of(requests, [str(c) for c in concepts]).sum(0)
    assert found.counts.tolist() == counts.tolist()
    assert counts.sum() == 36
    np.testing.assert_allclose(found.means.numpy(), (expected / counts[:, None, None]).numpy(), atol=3e-3)


def test_the_commands_teach() -> None:
    runner = CliRunner()
    for name, word in (("train-sae", "BLOCK"), ("locate", "heat map"), ("study", "AUROC")):
        result = runner.invoke(app, [name, "--help"])
        assert result.exit_code == 0
        assert word in result.output
    shown = runner.invoke(app, ["train-sae", "--show", "--set", "k=7"])
    assert "Latents kept per token" in " ".join(shown.output.split())

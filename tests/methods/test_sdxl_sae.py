"""SAEs of SDXL-Turbo in the format of their release, and their edits of output − input against hand-written computations."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import miniature_sdxl
import pytest
import torch
from conftest import request_of
from miniature_sdxl import CHANNELS, HOOKS, KEPT, LATENTS
from torch import Tensor

from bench.diffusion.loading import load_model
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler, sample
from bench.errors import BenchError
from bench.interfaces import Erasure, Slots
from methods.sae.autoencoder import SparseAutoencoder, check_block, folder_of, load_sae, sae_digest
from methods.sae.build import FVUMeter
from methods.sae.calibration import MaximaCollector
from methods.sae.edits import ReplacePatches, SteerLatents, name_seed, nearest_source, random_source
from methods.sae.statistics import MeanCollector

CPU = torch.device("cpu")
HOOK = HOOKS[3]
TIMESTEPS = torch.tensor([999, 665, 332])
CHOSEN = {20: (0.2, -2.0), 50: (0.1, 0.0), 37: (0.3, 4.0)}
"""Latents that fire in some of the maps' tokens, their thresholds and factors."""


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saes")
    for number, name in enumerate(HOOKS):
        miniature_sdxl.sae(folder_of(place, name), number)
    return place


@pytest.fixture(scope="module")
def folder(saes: Path) -> Path:
    return folder_of(saes, HOOK)


@pytest.fixture(scope="module")
def sae(folder: Path) -> SparseAutoencoder:
    return load_sae(folder, CPU)


def published(x: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """(latents, reconstruction) of tokens [N, C] in float64, as the release has them: the TopK first, then the ReLU."""
    state = {name: value.double() for name, value in miniature_sdxl.state(3).items()}
    pre = (x.double() - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"] + shift
    values, places = pre.topk(KEPT, dim=1)
    z = torch.zeros_like(pre).scatter(1, places, values).relu()
    return z, z @ state["decoder.weight"].T + state["pre_bias"]


def maps(seed: int, rows: int = 3, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(seed)) + shift


def flat(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_latents_are_those_of_the_release(shift: float, sae: SparseAutoencoder) -> None:
    """Also of tokens that light fewer latents than the TopK keeps, whose order of TopK and ReLU might matter."""
    own, x = copy.deepcopy(sae), flat(maps(1, 20))
    own.encoder.bias += shift
    expected, _ = published(x, shift)
    torch.testing.assert_close(own.encode(x).double(), expected, rtol=1e-4, atol=1e-5)
    few = ((expected > 0).sum(1) < KEPT).float().mean()
    assert (few > 0.5) == (shift < 0)


def test_the_release_is_read_with_weights_and_reconstruction(folder: Path, sae: SparseAutoencoder, tmp_path: Path) -> None:
    own = miniature_sdxl.state(3)
    assert (sae.config.d_in, sae.config.k, sae.config.latents, sae.config.residual) == (CHANNELS, KEPT, LATENTS, True)
    assert torch.equal(sae.encoder.weight, own["encoder.weight"])
    assert torch.equal(sae.W_dec, own["decoder.weight"].T)
    x = flat(maps(1))
    _, rebuilt = published(x)
    torch.testing.assert_close(sae.decode(sae.encode(x)).double(), rebuilt, rtol=1e-4, atol=1e-5)
    assert sae.digest == sae_digest(folder)
    sae.save(tmp_path / "own")
    again = load_sae(tmp_path / "own", CPU)
    assert again.config.residual
    assert torch.equal(again.W_dec, sae.W_dec.half().float())
    miniature_sdxl.sae(tmp_path / "other", 5)
    assert sae_digest(tmp_path / "other") != sae_digest(folder)


class _Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.place}",)


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = miniature_sdxl.state()
    change(state)
    torch.save({"state_dict": state}, folder / "state_dict.pth")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (lambda folder: (folder / "state_dict.pth").unlink(), r"holds no SAE"),
        (lambda folder: (folder / "config.json").write_text("[]"), "it lacks d_model"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (
            lambda folder: config(folder, n_dirs_local=7),
            r"describes 32 channels and 7 latents, state_dict\.pth holds other",
        ),
        (lambda folder: weights(folder, lambda state: state.pop("latent_bias")), "it lacks latent_bias"),
        (lambda folder: (folder / "state_dict.pth").write_bytes((folder / "state_dict.pth").read_bytes()[:500]), "cannot be read"),
        (lambda folder: torch.save([1, 2], folder / "state_dict.pth"), "cannot be read"),
        (lambda folder: torch.save({"state_dict": _Evil(folder / "ran")}, folder / "state_dict.pth"), "cannot be read"),
    ],
    ids=["config", "weights", "list", "json", "shapes", "tensor", "truncated", "other", "evil"],
)
def test_a_damaged_release_is_a_sentence(damage: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    folder = miniature_sdxl.sae(tmp_path / "sae")
    damage(folder)
    with pytest.raises(BenchError, match=named):
        load_sae(folder, CPU)
    assert not (folder / "ran").exists()


def fields_of(folder: Path, hook: str = HOOK) -> dict[str, object]:
    shape = (1, len(TIMESTEPS), len(CHOSEN))
    return {
        "hookpoints": (hook,), "saes": (str(folder),), "digests": (sae_digest(folder),), "timesteps": TIMESTEPS,
        "latents": torch.tensor(list(CHOSEN)).expand(shape), "thresholds": torch.tensor([t for t, _ in CHOSEN.values()]).expand(shape),
        "gate_latents": torch.zeros(1, len(TIMESTEPS), 0, dtype=torch.int64), "gate_thresholds": torch.zeros(1, len(TIMESTEPS), 0),
    }  # fmt: skip


def steer(folder: Path, error: str = "exact", hook: str = HOOK) -> SteerLatents:
    factors = torch.tensor([f for _, f in CHOSEN.values()]).expand(1, len(TIMESTEPS), len(CHOSEN))
    return SteerLatents(**fields_of(folder, hook), factors=factors, error=error)


def apply(edit: SteerLatents | ReplacePatches, x_in: Tensor, x_out: Tensor) -> tuple[Tensor, Slots]:
    """Of the last row, nothing is edited."""
    bank, rows = type(edit).stack([edit]), len(x_in)
    slots = Slots(torch.full((rows,), 665), torch.tensor([0] * (rows - 1) + [-1]), torch.arange(100, 100 + rows), torch.arange(rows))
    return bank.edit(HOOK, x_in, x_out, slots, bank.state(rows)), slots


@pytest.mark.parametrize("error", ["exact", "none", "published-code"])
def test_steering_adds_the_change_of_what_the_block_adds(error: str, folder: Path) -> None:
    x_in, x_out = maps(1, shift=2.0), maps(2)
    found, _ = apply(steer(folder, error), x_in, x_out)
    r = flat(x_out - x_in).double()
    z, rebuilt = published(r)
    new = z.clone()
    for latent, (threshold, factor) in CHOSEN.items():
        new[:, latent] = torch.where(z[:, latent] > threshold, z[:, latent] * factor, z[:, latent])
    delta = (new - z) @ miniature_sdxl.state(3)["decoder.weight"].double().T
    term = {"exact": r - rebuilt, "none": 0, "published-code": rebuilt - r}[error]
    expected = flat(x_in).double() + rebuilt + delta + term
    torch.testing.assert_close(flat(found)[:32].double(), expected[:32], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[2], x_out[2])
    if error == "exact":
        quiet = (new == z).all(1)
        assert 0 < quiet[:32].float().mean() < 1
        assert torch.equal(flat(found)[quiet], flat(x_out)[quiet])


@pytest.mark.parametrize("source", ["random", "nearest", "mean"])
def test_replacing_swaps_what_the_block_adds(source: str, folder: Path) -> None:
    x_in, x_out = maps(3, shift=2.0), maps(4)
    edit = ReplacePatches(**fields_of(folder), source=source)
    found, slots = apply(edit, x_in, x_out)
    r = flat(x_out - x_in)
    z, _ = published(r)
    seen = torch.stack([z[:, latent] > threshold for latent, (threshold, _) in CHOSEN.items()]).any(0).view(3, 16)
    assert torch.equal(type(edit).stack([edit]).detected(HOOK, x_in, x_out, slots.timestep, slots.which)[:2].flatten(1), seen[:2])
    taken = {
        "random": random_source(seen, slots.key + name_seed(HOOK), slots.timestep), "nearest": nearest_source(seen, torch.Size((4, 4))),
    }  # fmt: skip
    r, token_in, token_out = r.view(3, 16, -1), flat(x_in).view(3, 16, -1), flat(x_out).view(3, 16, -1)
    for row in range(2):
        assert seen[row].any()
        assert not seen[row].all()
        for p in range(16):
            if source == "mean":
                other = r[row][~seen[row]].mean(0)
            else:
                q = taken[source][row, p]
                assert not (seen[row, p] and seen[row, q])
                other = r[row, q]
            expected = token_in[row, p] + other if seen[row, p] else token_out[row, p]
            torch.testing.assert_close(found[row].flatten(1)[:, p], expected, rtol=1e-5, atol=1e-5)
            assert seen[row, p] or torch.equal(found[row].flatten(1)[:, p], expected)
    assert torch.equal(found[2], x_out[2])


def test_collectors_see_what_the_block_adds(sae: SparseAutoencoder) -> None:
    x_in, x_out = maps(5, shift=2.0), maps(6)
    z, rebuilt = published(flat(x_out - x_in))
    z, row, role = z.view(3, 16, -1), torch.tensor([0, 1, -1]), torch.ones(3, dtype=torch.int64)
    means = MeanCollector(sae, HOOK, torch.eye(2), 1)
    candidates = torch.tensor([[[20, 50]], [[37, 82]]])
    maxima, meter = MaximaCollector(sae, HOOK, candidates, 2), FVUMeter(sae, HOOK)
    for probe in (means, maxima, meter):
        probe.see(HOOK, x_in, x_out, 0, row, role)
    torch.testing.assert_close(means.sums[:, 0].double(), z[:2].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maxima.maxima[:, 0, 0].double(), z[:2].amax(1)[:, [20, 50]], rtol=1e-4, atol=1e-5)
    r = flat(x_out - x_in)[:32].double()
    unexplained = (rebuilt[:32] - r).square().sum() / (r - r.mean(0)).square().sum()
    assert meter.fvu == [None, pytest.approx(float(unexplained), rel=1e-4)], "without guidance there is no unconditional half"


def test_they_edit_turbo_and_share_until_they_fire(saes: Path, tmp_path: Path) -> None:
    model = load_model(miniature_sdxl.model(tmp_path / "turbo", "turbo"), CPU)
    for name in HOOKS:
        check_block(model.unet, name, load_sae(folder_of(saes, name), CPU).config)
    size = miniature_sdxl.SIZE
    requests = [replace(request_of(seed=seed, steps=3, scale=0.0), height=size, width=size) for seed in (1, 2)]
    collectors = {name: MeanCollector(load_sae(folder_of(saes, name), CPU), name, torch.ones(2, 1), 3) for name in HOOKS}
    sample(model, [Row(request, Erasure()) for request in requests], torch.float32, 8, probes=list(collectors.values()))
    brightest = {
        name: {"latents": own.sums[0].topk(3).indices[None], "thresholds": torch.zeros(1, 3, 3)} for name, own in collectors.items()
    }
    edits = [replace(steer(folder_of(saes, name), "exact", name), **own) for name, own in brightest.items()]
    edits += [replace(steer(folder_of(saes, HOOK)), thresholds=torch.full((1, 3, 3), 1e3))]
    edits += [ReplacePatches(**{**fields_of(folder_of(saes, HOOK)), **brightest[HOOK]})]
    erasures = [Erasure(), *(Erasure(activations=(edit,)) for edit in edits)]
    rows = [Row(request, erasure) for request in requests for erasure in erasures]
    for dtype in (torch.float32, torch.bfloat16):
        alone = sample(model, rows, dtype, 8).latents
        assert torch.equal(Sampler(model, dtype, 8, share=True).all(rows).latents, alone)
        assert torch.equal(sample(model, rows[::-1], dtype, 8).latents.flip(0), alone)
        changed = [not torch.equal(alone[i], alone[0]) for i in range(1, len(erasures))]
        assert changed == [True] * 4 + [False, True], "all but the one whose thresholds nothing exceeds"
    elsewhere = Row(requests[0], Erasure(activations=(steer(folder_of(saes, HOOK), "exact", "up_blocks.0.upsamplers.0"),)))
    with pytest.raises(BenchError, match=r"reads output − input, but the block makes \[32, 8, 8\] of"):
        sample(model, [elsewhere], torch.float32, 8)

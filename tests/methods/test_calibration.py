"""Detectors against maxima counted by hand on what was really sampled; splits that share nothing; reconstruction measured."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.interfaces import Erasure, FitContext, Probe
from bench.registry import method
from bench.suites.minicanvas import HOOKPOINTS, SUITE
from bench.suites.suite import Split
from bench.types import Concept
from methods.sae.autoencoder import folder_of, load_sae
from methods.sae.build import FVUMeter
from methods.sae.calibration import KEPT, MaximaCollector, _half_up, load_detectors, make_detectors
from methods.sae.edits import ReplacePatches
from methods.sae.pictures import Watched
from methods.sae.statistics import Statistics
from methods.sae.study import _iou, _shift
from methods.sae.training import tokens_of

BLOCK = HOOKPOINTS["object"][0]
FISH = Concept("object", "fish")
SAES = SUITE.assets.sae_folder
assert SAES is not None


class _Keeper(Probe):
    """Everything, slot by slot."""

    hookpoints = (BLOCK,)

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int], Tensor] = {}

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        for slot, (r, k) in enumerate(zip(row.tolist(), role.tolist(), strict=True)):
            if r >= 0:
                self.found[r, step, k] = tokens_of(x_out)[slot].clone()


@pytest.fixture(scope="module")
def watched(model: DiffusionModel) -> tuple[_Keeper, MaximaCollector, FVUMeter]:
    """Three pictures in calls of four slots: the last call is half padding."""
    sae = load_sae(folder_of(SAES, BLOCK), torch.device("cpu"))
    candidates = torch.arange(2 * 4 * 5).view(2, 4, 5) * 7 % sae.config.latents
    probes = _Keeper(), MaximaCollector(sae, BLOCK, candidates, 3), FVUMeter(sae, BLOCK)
    sample(model, [Row(SUITE.request("neon", obj, 1, 4), Erasure()) for obj in ("fish", "star", "key")], torch.float32, 4, probes=probes)
    return probes


def test_maxima_are_over_tokens_and_both_halves(watched: tuple[_Keeper, MaximaCollector, FVUMeter]) -> None:
    keeper, collector, _ = watched
    maxima = collector.maxima
    assert maxima.shape == (3, 2, 4, 5)
    unequal = 0
    for r, step in itertools.product(range(3), range(4)):
        halves = [collector.sae.encode(keeper.found[r, step, k]).amax(0) for k in (0, 1)]
        latents = torch.arange(2 * 4 * 5).view(2, 4, 5)[:, step] * 7 % collector.sae.config.latents
        torch.testing.assert_close(maxima[r, :, step], torch.maximum(*halves)[latents], rtol=1e-4, atol=1e-4)
        unequal += int((halves[0][latents] > halves[1][latents]).sum())
    assert unequal, "the unconditional half matters somewhere"


def test_fvu_against_numpy(watched: tuple[_Keeper, MaximaCollector, FVUMeter]) -> None:
    keeper, _, meter = watched
    for half in (0, 1):
        x = torch.cat([keeper.found[r, step, half] for r in range(3) for step in range(4)])
        error = (meter.sae.decode(meter.sae.encode(x)) - x).double().square().sum()
        variance = (x.double() - x.double().mean(0)).square().sum()
        assert meter.fvu[half] == pytest.approx(float(error / variance), rel=1e-4)


def test_the_gate_opens_where_the_statistic_exceeds_the_threshold(context: FitContext, model: DiffusionModel) -> None:
    """The erasure's own gate against the definition, on pictures that it should and should not see. `error=none` shows an open gate."""
    alpha, count, steps = 0.3, 2, 20
    requests = [SUITE.request("neon", obj, seed, steps, split="verify") for obj in ("fish", "heart", "key") for seed in (1, 2)]
    kind = method("saeuron")
    erasure = kind(kind.Config(error="none", alpha=alpha, gate_features=count)).fit(replace(context, steps=steps), [FISH])
    opened = sample(model, [Row(request, erasure) for request in requests], torch.float32, 8).first_edit >= 0
    expected = torch.zeros(len(requests), dtype=torch.bool)
    for name in HOOKPOINTS["object"]:
        sae = load_sae(folder_of(SAES, name), torch.device("cpu"))
        detectors = load_detectors(folder_of(SAES, name), sae.digest, model.digest)
        c = detectors.concepts.index("object:fish")
        collector = MaximaCollector(sae, name, detectors.latents, len(requests))
        sample(model, [Row(request, Erasure()) for request in requests], torch.float32, 8, probes=[collector])
        statistic = (collector.maxima[:, c, :, :count] / detectors.scales[c, :, :count]).amax((1, 2))
        unrelated = detectors.calibrate[c, count - 1][~detectors.calibrate_shows[c]].sort().values
        rank = int(np.ceil((len(unrelated) + 1) * (1 - alpha / len(HOOKPOINTS["object"]))))
        expected |= statistic > unrelated[rank - 1]
    assert opened.tolist() == expected.tolist()
    assert expected[:2].all()
    assert not expected.all()


def test_detectors_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    concepts, steps, latents, kept = ("object:a", "object:b"), 3, 12, KEPT
    candidates = torch.stack([torch.randperm(40, generator=generator)[:latents] for _ in range(2 * steps)]).view(2, steps, latents)
    splits = []
    for pictures in (60, 50, 40):
        shows = torch.rand(pictures, 2, generator=generator) < 0.3
        maxima = torch.rand(pictures, 2, steps, latents, generator=generator) + shows[:, :, None, None] * torch.linspace(0, 1, latents)
        splits.append((maxima, shows))
    stats = Statistics(concepts, torch.tensor([801, 401, 1]), torch.zeros(2, steps, 40), torch.ones(2).long(), "sae", "model")
    found = make_detectors(stats, candidates, splits)
    (maxima, shows), (calibrate, _), (verify, _) = splits
    for c, t in itertools.product(range(2), range(steps)):
        scale = np.maximum(np.quantile(maxima[~shows[:, c], c, t].numpy(), 0.995, axis=0), 0.1 * maxima[:, c, t].amax(0).numpy())
        recall = (maxima[shows[:, c], c, t].numpy() > scale).mean(0)
        places = [candidates[c, t].tolist().index(latent) for latent in found.latents[c, t].tolist()]
        assert recall[places].tolist() == sorted(recall.tolist(), reverse=True)[:kept]
        np.testing.assert_allclose(found.scales[c, t], scale[places], rtol=1e-5)
    for k, (split, statistic) in itertools.product(range(kept), ((calibrate, found.calibrate), (verify, found.verify))):
        for c, r in itertools.product(range(2), range(0, len(split), 7)):
            by_hand = max(
                float(split[r, c, t, candidates[c, t].tolist().index(int(found.latents[c, t, i]))] / found.scales[c, t, i])
                for t in range(steps)
                for i in range(k + 1)
            )
            assert float(statistic[c, k, r]) == pytest.approx(by_hand, rel=1e-5)


@given(st.lists(st.floats(0, 6e4, width=32), min_size=1, max_size=20))
def test_statistics_are_rounded_up(values: list[float]) -> None:
    exact = torch.tensor(values, dtype=torch.float32)
    half = _half_up(exact).float()
    assert (half >= exact).all()
    assert (half <= exact * (1 + 2**-10) + 1e-7).all()


def test_splits_share_no_prompt_and_no_noise_with_evaluation_or_each_other() -> None:
    preset = SUITE.presets["full"]
    seeds = range(1, preset.seeds + 1)
    evaluation = [SUITE.request(*cell, 20) for cell in itertools.product(SUITE.styles, SUITE.objects, seeds)]
    names: tuple[Split, ...] = ("select", "calibrate", "verify", "tune")
    lots = {"evaluation": evaluation, **{name: list(SUITE.split_requests(name, 1320, 20)) for name in names}}
    for (one, a), (other, b) in itertools.combinations(lots.items(), 2):
        assert not {r.prompt for r in a} & {r.prompt for r in b}, (one, other)
        assert not {(r.noise_key, r.seed) for r in a} & {(r.noise_key, r.seed) for r in b}, (one, other)


def test_iou_and_shift_by_hand() -> None:
    seen = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    truth = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert _iou(seen, truth) == pytest.approx((1 / 3 + 0) / 2)
    base = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0))
    deviation = base.std(1, keepdim=True)
    assert _shift(base, base)["mean_shift"] == 0
    moved = _shift(base, base + 2 * deviation)
    assert moved["mean_shift"] == pytest.approx(2, rel=1e-5)
    assert moved["spread"] == pytest.approx(1, rel=1e-5)
    assert _shift(base, 3 * base)["norm_ratio"] == pytest.approx(3, rel=1e-5)
    assert _shift(base, base + 100)["outside"] == 1
    assert _shift(base, 100 * base)["norm_outside"] == pytest.approx(1, abs=0.01)


def test_what_is_watched_is_what_changes(context: FitContext, model: DiffusionModel) -> None:
    kind = method("saeuron-detect")
    erasure = kind(kind.Config(detection="saeuron-code", hookpoints=(BLOCK,))).fit(context, [FISH])
    (edit,) = erasure.activations
    assert isinstance(edit, ReplacePatches)
    requests = [SUITE.request("neon", obj, 1, 4) for obj in ("fish", "star", "key")]
    seen = Watched.of(edit)
    rows = [Row(request, Erasure(activations=(seen,))) for request in requests]
    found = sample(model, rows, torch.float32, 4)
    assert torch.equal(found.latents, sample(model, [Row(r, erasure) for r in requests], torch.float32, 4).latents)
    masks = seen.masks(BLOCK, 3, 4)
    assert masks.shape == (4, 3, 2, 4, 4)
    changed = masks.flatten(2).any(2)  # [T, R]
    first = torch.where(changed.any(0), changed.int().argmax(0), -1)
    assert first.tolist() == found.first_edit.tolist()

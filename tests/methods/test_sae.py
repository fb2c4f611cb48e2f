"""The SAE and its edits against independent dense implementations on small tensors."""

from __future__ import annotations

import math
from dataclasses import replace as replace_fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.errors import BenchError
from bench.interfaces import Slots
from methods.sae.autoencoder import SAEConfig, SparseAutoencoder, load_sae, sae_digest
from methods.sae.calibration import Detectors, order_statistic, select, step_statistics
from methods.sae.edits import ReplacePatches, SteerLatents, name_seed, nearest_source, random_source
from methods.sae.features import Features, by_percentile, published_features, scores, top, union
from methods.sae.quality import gate_table, step_recall
from methods.sae.statistics import Statistics

HOOK, D, N, K, T = "up_blocks.1.attentions.1", 8, 32, 4, 3
TIMESTEPS = torch.tensor([901, 501, 101])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SAE in the published format."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(D, K, num_latents=N))
    sae.encoder.bias.data.normal_(0, 0.1)
    sae.b_dec.data.normal_(0, 0.1)
    place = tmp_path_factory.mktemp("saes") / f"unet.{HOOK}"
    sae.save(place)
    return place


@pytest.fixture(scope="module")
def sae(folder: Path) -> SparseAutoencoder:
    return load_sae(folder, torch.device("cpu"))


def maps(rows: int, size: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(rows, D, size, size, generator=torch.Generator().manual_seed(seed))


def dense_encode(sae: SparseAutoencoder, x: np.ndarray) -> np.ndarray:
    """One token, in float64, straight from the formula."""
    weight, bias, b_dec = (t.double().numpy() for t in (sae.encoder.weight, sae.encoder.bias, sae.b_dec))
    z = np.maximum(weight @ (x - b_dec) + bias, 0)
    return np.where(z >= np.sort(z)[-K], z, 0)


def dense_steer(sae: SparseAutoencoder, x: Tensor, features: dict[int, tuple[float, float]], error: str) -> np.ndarray:
    """Token by token, latent by latent: decode the edited latents, then add the error term."""
    out = np.zeros(tuple(x.shape))
    w_dec, b_dec = sae.W_dec.double().numpy(), sae.b_dec.double().numpy()
    for s, i, j in np.ndindex(len(x), *x.shape[2:]):
        token = x[s, :, i, j].double().numpy()
        z = dense_encode(sae, token)
        new = z.copy()
        for latent, (threshold, factor) in features.items():
            if z[latent] > threshold:
                new[latent] = z[latent] * factor
        rebuilt = z @ w_dec + b_dec
        term = {"exact": token - rebuilt, "published-code": rebuilt - token, "none": 0}[error]
        out[s, :, i, j] = new @ w_dec + b_dec + term
    return out


def tables(features: dict[int, tuple[float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """[1, T, F] latents, thresholds, factors, alike at every step."""
    latents = torch.tensor(list(features) or [0])
    thresholds = torch.tensor([threshold for threshold, _ in features.values()] or [math.inf])
    factors = torch.tensor([factor for _, factor in features.values()] or [1.0])
    return tuple(t.expand(1, T, -1).contiguous() for t in (latents, thresholds, factors))


def gate(thresholds: list[float], latent: int = 3) -> dict:
    """Fields of a gate of one latent with a threshold per step; always open without thresholds."""
    if not thresholds:
        return {"gate_latents": torch.zeros(1, T, 0, dtype=torch.int64), "gate_thresholds": torch.zeros(1, T, 0)}
    return {"gate_latents": torch.full((1, T, 1), latent), "gate_thresholds": torch.tensor(thresholds).view(1, T, 1)}


def fields_of(folder: Path) -> dict:
    return {"hookpoints": (HOOK,), "saes": (str(folder),), "digests": (sae_digest(folder),), "timesteps": TIMESTEPS, **gate([])}


def steer(folder: Path, features: dict[int, tuple[float, float]], error: str = "exact") -> SteerLatents:
    latents, thresholds, factors = tables(features)
    return SteerLatents(**fields_of(folder), latents=latents, thresholds=thresholds, factors=factors, error=error)


def replace(folder: Path, features: dict[int, tuple[float, float]], source: str = "random", dilation: int = 0) -> ReplacePatches:
    latents, thresholds, _ = tables(features)
    return ReplacePatches(**fields_of(folder), latents=latents, thresholds=thresholds, source=source, dilation=dilation)


def apply(edits: list, x: Tensor, which: list[int], timestep: int = 501, key: list[int] | None = None) -> Tensor:
    bank = type(edits[0]).stack(edits)
    keys = torch.tensor(key or list(range(100, 100 + len(x))))
    slots = Slots(torch.full((len(x),), timestep), torch.tensor(which), keys, torch.arange(len(x)))
    return bank.edit(HOOK, x, x, slots, bank.state(len(x)))


FEATURES = {3: (0.0, -2.0), 7: (0.2, -5.0), 11: (0.1, 0.0)}


def test_topk_leaves_at_most_k(sae: SparseAutoencoder) -> None:
    x = maps(2).flatten(2).transpose(1, 2)
    z = sae.encode(x)
    assert (z > 0).sum(-1).max() <= K
    expected = np.stack([dense_encode(sae, token) for token in x.reshape(-1, D).double().numpy()])
    np.testing.assert_allclose(z.reshape(-1, N).numpy(), expected, atol=1e-5)


def test_ties_with_the_kth_are_all_kept() -> None:
    sae = SparseAutoencoder(SAEConfig(2, 2, num_latents=4))
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[1.0, 0], [0.5, 0], [0.5, 0], [0.1, 0]]))
    assert sae.encode(torch.tensor([1.0, 0])).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_looked_up_latents_are_those_of_the_encoder_ties_included() -> None:
    """Weights and tokens of few values: many latents of a token tie with its k-th."""
    generator = torch.Generator().manual_seed(3)
    sae = SparseAutoencoder(SAEConfig(4, 3, num_latents=24))
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.randint(-1, 2, (24, 4), generator=generator))
    tokens = torch.randint(-1, 2, (5, 300, 4), generator=generator).float()  # more than one block
    latents = torch.randint(0, 24, (5, 6), generator=generator)
    above = torch.randint(0, 3, (5, 6), generator=generator).float()
    above[4] = torch.inf
    with torch.no_grad():
        found = sae.exceeding(tokens, latents, above)
        dense = sae.encode(tokens).gather(2, latents[:, None, :].expand(-1, 300, -1))
    exceeds = dense > above[:, None, :]
    kept = sae.encode(tokens) > 0
    assert (kept.sum(-1) > 3).any(), "ties beyond k"
    assert exceeds.any()
    assert torch.equal(found > above[:, None, :], exceeds)
    assert torch.equal(found[exceeds], dense[exceeds])


@pytest.mark.parametrize("error", ["exact", "published-code", "none"])
def test_steering_equals_the_dense_formula(sae: SparseAutoencoder, folder: Path, error: str) -> None:
    x = maps(3)
    np.testing.assert_allclose(
        apply([steer(folder, FEATURES, error)], x, [0, 0, 0]).numpy(), dense_steer(sae, x, FEATURES, error), atol=1e-5
    )


def test_an_empty_edit(sae: SparseAutoencoder, folder: Path) -> None:
    x = maps(2)
    rebuilt = sae.decode(sae.encode(x.flatten(2).transpose(1, 2))).transpose(1, 2).reshape(x.shape)
    assert torch.equal(apply([steer(folder, {}, "exact")], x, [0, 0]), x)
    torch.testing.assert_close(apply([steer(folder, {}, "published-code")], x, [0, 0]), 2 * rebuilt - x)
    torch.testing.assert_close(apply([steer(folder, {}, "none")], x, [0, 0]), rebuilt)


def test_exact_with_factor_one_is_the_identity(folder: Path) -> None:
    x = maps(2)
    torch.testing.assert_close(apply([steer(folder, {3: (0.0, 1.0), 7: (0.0, 1.0)})], x, [0, 0]), x, atol=0, rtol=0)


def test_rows_of_a_bank_do_not_see_each_other(folder: Path) -> None:
    x = maps(4)
    edits = [steer(folder, FEATURES), steer(folder, {5: (0.0, -9.0)}, "published-code")]
    mixed = apply(edits, x, [0, 1, -1, 1])
    assert torch.equal(mixed[2], x[2])
    assert torch.equal(mixed[:1], apply(edits[:1], x, [0, -1, -1, -1])[:1])
    torch.testing.assert_close(mixed[3], apply([edits[1]], x, [-1, -1, -1, 0])[3])


def test_a_gate_opens_for_both_halves_and_stays_open(folder: Path) -> None:
    """Two rows of two halves. Row 0's second half exceeds the gate at the second step; row 1 never does."""
    quiet, loud = torch.zeros(D, 4, 4), maps(1)[0]
    x = torch.stack([loud, loud, loud, loud])
    edit = steer(folder, FEATURES)
    gated = replace_fields(edit, **gate([math.inf, 0.0, math.inf]))
    bank = SteerLatents.stack([gated])
    which, row, key = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1]), torch.arange(4)
    state = bank.state(2)

    def step(timestep: int, own: Tensor) -> Tensor:
        return bank.edit(HOOK, own, own, Slots(torch.full((4,), timestep), which, key, row), state)

    free = apply([edit], x, [0, 0, 0, 0])
    assert not torch.equal(free[0], x[0])
    assert torch.equal(step(901, x), x)
    half = torch.stack([quiet, loud, quiet, quiet])
    second = step(501, half)
    assert not torch.equal(second[1], half[1])
    assert torch.equal(second[2:], half[2:])
    third = step(101, x)
    torch.testing.assert_close(third[:2], free[:2])
    assert torch.equal(third[2:], x[2:])


def test_a_closed_gate_is_the_identity_whatever_the_error_term(folder: Path) -> None:
    x = maps(2)
    for error in ("exact", "published-code", "none"):
        edits = [replace_fields(steer(folder, FEATURES, error), **gate([math.inf] * T)), steer(folder, FEATURES, error)]
        new = apply(edits, x, [0, 1])
        assert torch.equal(new[0], x[0])
        assert not torch.equal(new[1], x[1])


def test_tables_are_read_at_the_nearest_timestep(folder: Path) -> None:
    edit = steer(folder, {3: (0.0, -2.0)})
    edit.thresholds[:, 1] = math.inf
    x = maps(1)
    assert torch.equal(apply([edit], x, [0], timestep=480), x)
    assert not torch.equal(apply([edit], x, [0], timestep=880), x)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), source=st.sampled_from(["random", "nearest"]), threshold=st.floats(0.0, 1.5))
def test_replacement_invariants(folder: Path, seed: int, source: str, threshold: float) -> None:
    features = {3: (threshold, 0.0), 9: (threshold, 0.0), 20: (threshold, 0.0)}
    x = maps(3, seed=seed)
    edit = replace(folder, features, source)
    new = apply([edit], x, [0, 0, -1], key=[seed, seed + 1, seed + 2])
    seen = ReplacePatches.stack([edit]).detected(HOOK, x, x, torch.full((3,), 501), torch.tensor([0, 0, -1]))
    assert not seen[2].any()
    for s in range(3):
        before, after, mask = x[s].flatten(1).T, new[s].flatten(1).T, seen[s].flatten()
        assert torch.equal(after[~mask], before[~mask])
        if mask.all() or not mask.any():
            assert torch.equal(after, before)
            continue
        allowed = {tuple(token.tolist()) for token in before[~mask]}
        assert all(tuple(token.tolist()) in allowed for token in after[mask])


def test_mean_replacement_and_dilation(folder: Path) -> None:
    x, features = maps(1, size=6), {3: (0.8, 0.0)}
    edit = replace(folder, features)
    seen = ReplacePatches.stack([edit]).detected(HOOK, x, x, torch.tensor([501]), torch.tensor([0]))[0]
    assert 0 < seen.sum() < 8
    new = apply([replace(folder, features, "mean")], x, [0])[0]
    torch.testing.assert_close(new[:, seen], x[0][:, ~seen].mean(1, keepdim=True).expand(-1, int(seen.sum())))
    grown = (apply([replace(folder, features, "mean", 1)], x, [0])[0] != x[0]).any(0)
    expected = torch.zeros_like(seen)
    for i, j in seen.nonzero().tolist():
        expected[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2] = True
    assert torch.equal(grown, expected)


def test_dilation_stops_before_it_swallows_the_map(folder: Path) -> None:
    x, features = maps(1, size=6), {3: (0.8, 0.0)}
    changed = [(apply([replace(folder, features, "mean", radius)], x, [0])[0] != x[0]).any(0) for radius in range(9)]
    sizes = [int(mask.sum()) for mask in changed]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[1] <= sizes[-1] < 36


def test_all_detected_is_the_identity(folder: Path) -> None:
    x = maps(1)
    everything = replace(folder, dict.fromkeys(range(N), (-1.0, 0.0)))
    assert torch.equal(apply([everything], x, [0]), x)


def test_random_sources_are_uniform_and_depend_on_key_and_step() -> None:
    seen = torch.zeros(4000, 8, dtype=torch.bool)
    seen[:, :4] = True
    key = torch.arange(4000) * 7919 + 2**62
    drawn = random_source(seen, key, torch.full((4000,), 501))[:, :4]
    counts = torch.bincount(drawn.flatten(), minlength=8)
    assert counts[:4].sum() == 0
    assert ((counts[4:] - 4000).abs() < 5 * math.sqrt(4000)).all()
    assert torch.equal(drawn, random_source(seen, key, torch.full((4000,), 501))[:, :4])
    others = (key, 451), (key + 1, 501), (key + name_seed(HOOK), 501), (key + name_seed("mid_block.attentions.0"), 501)
    for other in (random_source(seen, other_key, torch.full((4000,), timestep)) for other_key, timestep in others):
        assert 0.2 < (other[:, :4] == drawn).float().mean() < 0.3


def test_nearest_source() -> None:
    seen = torch.tensor([[0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    assert nearest_source(seen, torch.Size((1, 6))).tolist() == [[0, 0, 0, 5, 5, 5]]


@pytest.mark.parametrize(("percentile", "count"), [(99.999, 1), (99.995, 2), (99.99, 3)])
def test_strict_quantile_of_20480(percentile: float, count: int) -> None:
    score = torch.randperm(20_480, generator=torch.Generator().manual_seed(0)).float()[None] / 20_480
    assert int(by_percentile(score, percentile).sum()) == count


def statistics(concepts: int = 3) -> Statistics:
    means = torch.rand(concepts, T, 12, generator=torch.Generator().manual_seed(3))
    counts = torch.tensor([5, 10, 20])[:concepts]
    return Statistics(("object:a", "object:b", "object:c")[:concepts], TIMESTEPS, means, counts, "sae", "model")


def test_score_and_published_threshold_by_hand() -> None:
    found = statistics()
    means = found.means.double().numpy()
    for t in range(T):
        other = (10 * means[1, t] + 20 * means[2, t]) / 30
        expected = means[0, t] / (means[0, t].sum() + 1e-8) - other / (other.sum() + 1e-8)
        np.testing.assert_allclose(scores(found, 0)[t].numpy(), expected, atol=1e-6)
    chosen = top(scores(found, 0), 2)
    features = published_features(found, 0, chosen, -5.0)
    for t in range(T):
        best = sorted(np.argsort(-scores(found, 0)[t].numpy(), kind="stable")[:2])
        assert sorted(features.latents[t].tolist()) == best
        for f, latent in enumerate(features.latents[t].tolist()):
            assert float(features.thresholds[t, f]) == pytest.approx(means[:, t, latent].mean(), rel=1e-5)
            assert float(features.factors[t, f]) == pytest.approx(-5 * means[0, t, latent], rel=1e-5)


def test_union_of_overlapping_concepts() -> None:
    one = Features(torch.tensor([[4, 2]]), torch.tensor([[0.5, 0.1]]), torch.tensor([[-1.0, -2.0]]))
    two = Features(torch.tensor([[7, 4]]), torch.tensor([[0.3, 0.2]]), torch.tensor([[-4.0, -0.5]]))
    found = union([one, two])
    live = {int(i): (float(t), float(f)) for i, t, f in zip(*(table[0] for table in found), strict=True) if math.isfinite(t)}
    assert {key: pytest.approx(value) for key, value in live.items()} == {4: (0.2, -1.0), 2: (0.1, -2.0), 7: (0.3, -4.0)}
    assert int(found.thresholds.isfinite().sum()) == 3


def test_calibrated_threshold_covers() -> None:
    """The chance that a new picture exceeds the order statistic is at most α, close to it for continuous values."""
    rng, alpha, n = np.random.default_rng(0), 0.05, 199
    exceeded = [rng.gumbel() > order_statistic(torch.from_numpy(rng.gumbel(size=n)).sort().values, alpha) for _ in range(20_000)]
    assert np.mean(exceeded) == pytest.approx(alpha, abs=4 * math.sqrt(alpha * (1 - alpha) / 20_000))
    with pytest.raises(BenchError, match="too few"):
        order_statistic(torch.arange(50.0), 0.01)


def test_selection_prefers_the_planted_latent() -> None:
    generator = torch.Generator().manual_seed(0)
    maxima = torch.rand(200, 2, T, 6, generator=generator)
    shows = torch.zeros(200, 2, dtype=torch.bool)
    shows[:50, 0] = shows[50:90, 1] = True
    maxima[:50, 0, :, 4] += 2
    candidates = torch.arange(6).expand(2, T, 6) * 10
    choice = select(maxima, shows, candidates)
    assert (choice.latents[0, :, 0] == 40).all()
    assert (choice.recalls[0, :, 0] == 1).all()
    steps = step_statistics(maxima, choice)
    assert (step_recall(steps, shows, 0.0)[0, :, 0] == 1).all()
    assert (steps.diff(dim=-1) >= 0).all()


def test_recall_at_a_false_positive_rate_by_hand() -> None:
    others, own = torch.arange(100.0), torch.tensor([98.0, 98.5, 99.0, 120.0])
    steps = torch.cat([others, own]).view(-1, 1, 1, 1)
    shows = torch.arange(104)[:, None] >= 100
    for alpha, expected in ((0.0, 1 / 4), (0.01, 3 / 4), (0.02, 1.0)):  # thresholds 99, 98, 97
        assert step_recall(steps, shows, alpha).item() == expected


def detectors(seed: int, shift: float) -> Detectors:
    """Of two concepts, 50 pictures each, and 1,900 that show neither; a concept's own are `shift` higher."""
    generator = torch.Generator().manual_seed(seed)
    shows = torch.zeros(2, 2000, dtype=torch.bool)
    shows[0, :50] = shows[1, 50:100] = True

    def lot() -> Tensor:
        return torch.rand(2, 1, 2000, generator=generator) + shift * shows[:, None]

    latents, scales = torch.zeros(2, T, 1, dtype=torch.int64), torch.ones(2, T, 1)
    return Detectors(("object:a", "object:b"), TIMESTEPS, latents, scales, lot(), shows, lot(), shows, "sae", "model")


def test_gates_alone_and_together() -> None:
    table = gate_table({"x": detectors(0, 2.0), "y": detectors(1, 0.0)}, 1, 0.02).set_index(["hookpoint", "concept"])
    assert len(table) == 6
    assert table.loc[("x", "object:a"), "recall"] == 1
    assert table.loc[("y", "object:a"), "recall"] < 0.2
    assert table.loc[("x + y", "object:a"), "recall"] == 1
    for place in table.index:  # five standard deviations of a share of 2 % in 1,950, and what the threshold's own noise adds
        assert abs(table.loc[place, "false_positives"] - 0.02) < 5 * math.sqrt(2 * 0.02 * 0.98 / 1950)
    other = replace_fields(detectors(1, 0.0), concepts=("object:a", "object:c"))
    with pytest.raises(BenchError, match="different pictures"):
        gate_table({"x": detectors(0, 2.0), "y": other}, 1, 0.02)


def test_full_size_builds_and_round_trips(tmp_path: Path) -> None:
    sae = SparseAutoencoder(SAEConfig(1280, 32))
    assert sum(p.numel() for p in sae.parameters()) == 52_450_560
    sae.save(tmp_path)
    again = load_sae(tmp_path, torch.device("cpu"))
    assert again.config.latents == 20_480
    assert {name: tuple(value.shape) for name, value in again.state_dict().items()} == {
        "encoder.weight": (20_480, 1280), "encoder.bias": (20_480,), "W_dec": (20_480, 1280), "b_dec": (1280,),
    }  # fmt: skip
    assert torch.equal(again.W_dec, sae.W_dec.detach().half().float())

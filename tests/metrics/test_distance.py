"""Kernel and Fréchet distance: against explicit sums, scipy, closed forms and torchmetrics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_frechet
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from bench.metrics import distance
from bench.metrics.distance import FeatureSet


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float | None:
    return distance.kernel_distance(FeatureSet(x), FeatureSet(y))


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float | None:
    return distance.frechet_distance(FeatureSet(x), FeatureSet(y))


def features(n: int, d: int, rng: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(rng).normal(shift, scale, (n, d))


def exact(n: int, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these (diagonal) ones."""
    noise = features(n, len(mean), 7)
    q, _ = np.linalg.qr(noise - noise.mean(axis=0))
    return mean + q * np.sqrt(n - 1) * np.sqrt(variance)


def slow_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m)
    return xx + yy - 2 * xy


@pytest.mark.parametrize(("n", "m"), [(20, 20), (13, 31), (31, 13), (2, 2)])
def test_kernel_distance_is_the_double_sum(n: int, m: int) -> None:
    x, y = features(n, 6, 0), features(m, 6, 1, shift=0.3)
    assert kernel_distance(x, y) == pytest.approx(slow_kernel_distance(x, y), rel=1e-10)
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(y, x), rel=1e-10)


def test_kernel_distance_agrees_with_torchmetrics_on_sets_of_one_size() -> None:
    x, y = features(40, 16, 0), features(40, 16, 1, shift=0.1)
    assert kernel_distance(x, y) == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    same = [kernel_distance(features(12, 4, 2 * i), features(20, 4, 2 * i + 1)) for i in range(400)]
    # Mean 0 within three standard errors; the biased estimate would be above it by many.
    assert abs(np.mean(same)) < 3 * np.std(same) / 20
    assert min(same) < 0 < max(same)


def test_kernel_distance_takes_single_precision_and_grows_with_the_shift() -> None:
    x = features(50, 8, 0).astype(np.float32)
    found = [kernel_distance(x, features(60, 8, 1, shift=shift).astype(np.float32)) for shift in (0.2, 0.5, 1.0)]
    assert found == sorted(found)
    assert found[0] > 0


@pytest.mark.parametrize("rng", range(3))
def test_frechet_distance_is_the_formula(rng: int) -> None:
    mixing = features(8, 8, rng)
    x, y = features(60, 8, rng + 10) @ mixing, features(90, 8, rng + 20, shift=0.5, scale=2)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-8)


def test_frechet_distance_of_diagonal_gaussians() -> None:
    mean_x, mean_y = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    var_x, var_y = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    # Σ (difference of means)² + Σ (difference of standard deviations)² = (1 + 0 + 4) + (1 + 0 + 4).
    assert frechet_distance(exact(30, mean_x, var_x), exact(50, mean_y, var_y)) == pytest.approx(10.0, rel=1e-9)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    x = features(64, 5, 0)
    assert frechet_distance(x, x + 2.0) == pytest.approx(5 * 4.0, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_features_that_never_fire_are_harmless_and_silent() -> None:
    x, y = features(64, 8, 0), features(64, 8, 1, scale=1.5)
    padded = [np.hstack([z, np.zeros((64, 4))]) for z in (x, y)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance(*padded) == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_too_few_rows_are_none() -> None:
    assert frechet_distance(features(15, 8, 0), features(40, 8, 1)) is None
    assert frechet_distance(features(40, 8, 0), features(15, 8, 1)) is None
    assert frechet_distance(features(16, 8, 0), features(16, 8, 1)) is not None
    assert kernel_distance(features(1, 8, 0), features(40, 8, 1)) is None
    assert kernel_distance(features(2, 8, 0), features(2, 8, 1)) is not None


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_wrong_features_are_refused(distance: object) -> None:
    x = features(20, 4, 0)
    with pytest.raises(ValueError, match="same dimensions"):
        distance(x, features(20, 5, 1))  # type: ignore[operator]
    with pytest.raises(ValueError, match="finite"):
        distance(x, np.where(x > 1, np.nan, x))  # type: ignore[operator]


def test_frechet_distance_is_clean_fid_s() -> None:
    x, y = features(300, 32, 0) @ features(32, 32, 9), features(200, 32, 1, shift=0.3) @ features(32, 32, 8)
    moments = [moment for z in (x, y) for moment in (z.mean(0), np.cov(z, rowvar=False))]
    assert frechet_distance(x, y) == pytest.approx(float(cleanfid_frechet(*moments)), rel=1e-8)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_a_part_is_taken_off_by_its_sums(share: float) -> None:
    x, y = features(200, 16, 0) * 3 + 5, features(150, 16, 1)
    out = np.random.default_rng(2).random(200) < share
    whole = FeatureSet(x)
    rest = whole.without(out)
    assert np.array_equal(rest.features, x[~out])
    expected = frechet_distance(x[~out], y)
    assert distance.frechet_distance(rest, FeatureSet(y)) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(rest.moments.covariance.numpy(), np.cov(x[~out], rowvar=False), atol=1e-10)


def test_half_precision_features_move_distances_by_less_than_a_thousandth() -> None:
    x, y = np.abs(features(400, 64, 0)) * 0.4, np.abs(features(400, 64, 1, shift=0.2)) * 0.4  # averaged activations: not negative, below 2
    for measure in (frechet_distance, kernel_distance):
        exactly, halved = measure(x, y), measure(x.astype(np.float16), y.astype(np.float16))
        assert exactly is not None
        assert halved == pytest.approx(exactly, rel=1e-3)

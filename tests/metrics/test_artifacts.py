"""Artifacts: distances by hand and against scikit-learn, the threshold's coverage, rates with their intervals, files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import EmpiricalCovariance, shrunk_covariance
from sklearn.metrics import roc_auc_score

from bench.errors import BenchError
from bench.metrics import artifacts, unlearning
from bench.metrics.aggregate import aggregate
from bench.metrics.artifacts import QUANTILE, SHRINKAGE, ArtifactReference, auroc
from bench.metrics.uncertainty import wilson
from bench.types import MetricRules, Target

STYLES, OBJECTS = ("a", "b", "c"), ("x", "y", "z")
RULES = MetricRules(cra_includes_target=False)


def world(n: int, rng: int, d: int = 6, cells: int = 4) -> tuple[np.ndarray, list[str]]:
    """Correlated Gaussians around as many means, which do not depend on `rng`."""
    fixed = np.random.default_rng(99)
    mixing, means = fixed.normal(size=(d, d)), fixed.normal(0, 5, (cells, d))
    codes = np.arange(n) % cells
    return means[codes] + np.random.default_rng(rng).normal(size=(n, d)) @ mixing, [f"cell {code}" for code in codes]


def made(n: int = 800, held_out: int = 2000, **changes: str) -> ArtifactReference:
    return ArtifactReference.fit(*world(n, 1), world(held_out, 2)[0], **{"model": "m", "judge": "j", **changes})


def frame(targets: tuple[str, ...], far: list[bool | None], seeds: int = 1) -> pd.DataFrame:
    cells = list(itertools.product(targets, STYLES, OBJECTS, range(1, seeds + 1)))
    found = pd.DataFrame(cells, columns=["target", "style", "object", "seed"])
    return found.assign(style_pred=found["style"], object_pred=found["object"], far=pd.Series(far, dtype=object))


def test_distance_is_to_the_nearest_class_in_whitened_units() -> None:
    means, whitening = np.array([[0.0, 0.0], [10.0, 0.0]], np.float16), np.diag([1.0, 0.5]).astype(np.float16)
    reference = ArtifactReference(means, whitening, 2.0, "m", "j")
    # From (3, 8): √(3² + 4²) to the first; from (10, −4): 2 to the second, which is not beyond a threshold of 2.
    features = np.array([[3.0, 8.0], [10.0, -4.0], [10.5, -4.0]])
    assert reference.distances(features) == pytest.approx([5.0, 2.0, np.sqrt(4.25)])
    assert reference.far(features).tolist() == [True, False, True]


def test_distances_agree_with_scikit_learn() -> None:
    features, cells = world(800, 1)
    means = pd.DataFrame(features).groupby(cells).mean().to_numpy()
    centred = features - means[np.arange(800) % 4]
    fitted = EmpiricalCovariance(assume_centered=True).fit(centred)
    # Pooled over 800 pictures less 4 means; scikit-learn divides by 800.
    fitted._set_covariance(shrunk_covariance(fitted.covariance_ * 800 / 796, shrinkage=SHRINKAGE))
    others = world(300, 3)[0]
    expected = np.sqrt(np.min([fitted.mahalanobis(others - mean) for mean in means], axis=0))
    # Means and whitening are held in half precision.
    assert made().distances(others) == pytest.approx(expected, rel=0.01, abs=0.01)


def test_five_percent_of_the_same_kind_are_beyond_the_threshold() -> None:
    reference = made()
    assert reference.far(world(2000, 2)[0]).mean() == pytest.approx(1 - QUANTILE, abs=1 / 2000)
    assert reference.far(world(4000, 4)[0]).mean() == pytest.approx(1 - QUANTILE, abs=0.015)
    assert reference.far(world(400, 5)[0] + 100).all()


def test_features_that_never_fire_are_harmless() -> None:
    features, cells = world(800, 1)
    padded = ArtifactReference.fit(np.hstack([features, np.zeros((800, 2))]), cells, np.hstack([features, np.zeros((800, 2))]), "m", "j")
    assert np.isfinite(padded.threshold)
    assert padded.far(np.hstack([features, np.zeros((800, 2))])).mean() == pytest.approx(0.05, abs=0.01)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"are not \[n, 6\]"):
        made().distances(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="not all finite"):
        made().distances(np.full((3, 6), np.nan))
    with pytest.raises(ValueError, match="no covariance"):
        ArtifactReference.fit(np.eye(3), ["a", "b", "c"], np.eye(3), "m", "j")


def test_a_file_gives_back_the_same_distances(tmp_path: Path) -> None:
    reference = made()
    noted = ArtifactReference(reference.means, reference.whitening, reference.threshold, "m", "j", {"steps": 20, "far": 0.05})
    path = tmp_path / "artifacts" / "reference.safetensors"
    noted.save(path)
    again = ArtifactReference.load(path)
    others = world(50, 3)[0]
    assert np.array_equal(again.distances(others), reference.distances(others))
    assert (again.threshold, again.model, again.judge, again.notes) == (reference.threshold, "m", "j", {"steps": 20, "far": 0.05})
    bytes_before = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == bytes_before


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data.replace(b"threshold", b"thresholt")])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "reference.safetensors"
    made().save(path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(BenchError, match="is no reference for artifacts"):
        ArtifactReference.load(path)
    with pytest.raises(BenchError, match="is no reference for artifacts"):
        ArtifactReference.load(tmp_path / "missing.safetensors")


def test_auroc_counts_pairs() -> None:
    # Of 3 × 2 pairs the planted one is farther in 3, equal in 1.
    assert auroc([1.0, 2.0, 3.0], [2.0, 2.5]) == pytest.approx((1 + 0.5 + 2) / 6)
    assert auroc([1.0, 2.0], [3.0]) == 1.0
    assert auroc([1.0], []) is None
    assert auroc([], [1.0]) is None


@pytest.mark.parametrize("rng", range(5))
def test_auroc_agrees_with_scikit_learn(rng: int) -> None:
    draw = np.random.default_rng(rng)
    clean, planted = draw.integers(0, 12, 70) / 4, draw.integers(2, 15, 40) / 4
    labels = np.r_[np.zeros(70), np.ones(40)]
    assert auroc(clean, planted) == pytest.approx(roc_auc_score(labels, np.r_[clean, planted]), abs=1e-12)


def test_rates_of_target_and_retained_prompts_by_hand() -> None:
    # Style a is the target: its three pictures come first.
    far = [True, True, False, True, False, False, False, False, None]
    found = artifacts.per_target({"none": frame(("",), [False] * 9), "m": frame(("style:a",), far)}, RULES).set_index("method")
    row = found.loc["m"]
    assert (row["ar_target"], row["ar_target_n"]) == (pytest.approx(2 / 3), 3)
    # The unmeasured picture is not counted, neither as far nor as near.
    assert (row["ar_retained"], row["ar_retained_n"]) == (pytest.approx(1 / 5), 5)
    assert (row["ar"], row["ar_n"]) == (pytest.approx(3 / 8), 8)
    assert (row["ar_target_low"], row["ar_target_high"]) == pytest.approx(wilson(2, 3))
    assert found.loc["none", ["ar_target", "ar_retained", "ar"]].tolist() == [0, 0, 0]


def test_means_over_targets_and_the_unedited_model_on_the_same_cells() -> None:
    targets = ("style:a", "style:b")
    far = [True] * 3 + [False] * 6 + [True, False, False] + [False] * 6
    none = [True] + [False] * 8
    found = artifacts.aggregate({"none": frame(("",), none), "m": frame(targets, far)}, RULES).set_index("method")
    # Target a: 3 of 3 far. Target b: its own pictures are near, of the 6 others one is far.
    assert found.loc["m", ["ar_target", "ar_retained", "ar"]].tolist() == pytest.approx([1 / 2, 1 / 12, (3 / 9 + 1 / 9) / 2])
    assert found.loc["m", ["ar_target_n", "ar_retained_n", "ar_n"]].tolist() == [6, 12, 18]
    # The picture in style a is the target's for a, retained for b.
    assert found.loc["none", ["ar_target", "ar_retained"]].tolist() == pytest.approx([1 / 6, 1 / 12])
    row = found.loc["m"]
    assert row["ar_retained_low"] <= row["ar_retained"] <= row["ar_retained_high"]


def test_intervals_cover() -> None:
    """Over worlds in which a tenth of the pictures is far, the interval of the mean holds a tenth nearly always."""
    held = 0
    for rng in range(60):
        draw = np.random.default_rng(rng)
        outcomes = {"none": frame(("",), [False] * 180, 20), "m": frame(("style:a",), list(draw.random(180) < 0.1), 20)}
        row = artifacts.aggregate(outcomes, RULES).set_index("method").loc["m"]
        held += row["ar_low"] <= 0.1 <= row["ar_high"]
    assert held >= 51


def test_what_was_not_measured_is_empty() -> None:
    outcomes = {"none": frame(("",), [None] * 9), "m": frame(("style:a",), [None] * 9)}
    for table in (artifacts.per_target(outcomes, RULES), artifacts.aggregate(outcomes, RULES)):
        assert table[["ar", "ar_target", "ar_retained", "ar_low", "ar_high"]].isna().all(axis=None)
        assert (table["ar_n"] == 0).all()
    alone = {"none": frame(("",), [True] * 9)}
    assert artifacts.per_target(alone, RULES).empty
    assert artifacts.aggregate(alone, RULES).empty


def test_rows_are_those_of_unlearning() -> None:
    outcomes = {"none": frame(("",), [False] * 9), "m": frame(("style:a", "object:x", "style:a+object:x"), [False] * 27)}
    keys = ["method", "target"]
    assert artifacts.per_target(outcomes, RULES)[keys].equals(unlearning.per_target(outcomes, RULES)[keys])
    keys = ["method", "kind"]
    assert artifacts.aggregate(outcomes, RULES)[keys].equals(aggregate(outcomes, RULES).table()[keys])
    shown = unlearning.shows(outcomes["m"], Target.parse("style:a+object:x"))
    # Three pictures in style a and three of object x, one of them both.
    assert shown.sum() == 3 * 5

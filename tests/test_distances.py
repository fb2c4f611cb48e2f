"""Distances of stored features: whose pictures are compared with which true ones, and seed by seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.distances import distances_of
from bench.metrics.distance import FeatureSet, kernel_distance
from bench.scoring import FEATURES
from bench.suites.minicanvas import SUITE
from bench.types import Target

NEON = Target.parse("style:neon")
PRESET = replace(SUITE.presets["quick"], seeds=3)


def pictures() -> pd.DataFrame:
    """Every picture asked for, with features in the artifact network's place."""
    asked = list(SUITE.requests(NEON, PRESET))
    values = np.random.default_rng(0).normal(size=(len(asked), 8)).astype(np.float32)
    cells = [(request.id, request.style, request.object, request.seed) for request in asked]
    return pd.DataFrame(cells, columns=["request", "style", "object", "seed"]).assign(**{f"{FEATURES}artifact": list(values)})


def truth() -> dict[str, tuple[pd.DataFrame, FeatureSet]]:
    cells = pd.DataFrame([(style, obj) for style in SUITE.styles for obj in SUITE.objects], columns=["style", "object"])
    return {"artifact": (cells, FeatureSet(np.random.default_rng(1).normal(size=(len(cells), 8))))}


def by_hand(frame: pd.DataFrame) -> float:
    cells, true = truth()["artifact"]
    kept = true.where((cells["style"] != "neon").to_numpy())
    found = kernel_distance(FeatureSet(np.stack(frame[f"{FEATURES}artifact"].tolist())), kept)
    assert found is not None
    return found


def test_retained_pictures_are_compared_as_a_whole_and_by_seed() -> None:
    frame = pictures()
    found = distances_of(SUITE, PRESET, [NEON], frame, truth(), str(NEON))[str(NEON)]
    retained = frame[frame["style"] != "neon"]
    assert found["kernel"] == pytest.approx(by_hand(retained))
    assert found["n"] == len(retained)
    assert found["frechet"] > 0
    assert found["seeds"]["frechet"].keys() == {"1", "2", "3"}
    assert found["seeds"]["kernel"] == pytest.approx({str(seed): by_hand(own) for seed, own in retained.groupby("seed")})
    assert len(found["seeds"]["kernel"]) == 3


def test_a_seed_that_lacks_pictures_has_no_distance_of_its_own() -> None:
    frame = pictures()
    lost = frame.drop(frame[(frame["seed"] == 2) & (frame["style"] != "neon")].index[:1])
    found = distances_of(SUITE, PRESET, [NEON], lost, truth(), str(NEON))[str(NEON)]
    assert sorted(found["seeds"]["kernel"]) == ["1", "3"]

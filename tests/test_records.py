"""Units to records: when artifacts are measured, and when they are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from bench.metrics.artifacts import ArtifactReference
from bench.records import _artifact_reference, _with_far
from bench.session import Session


def reference() -> ArtifactReference:
    return ArtifactReference(np.zeros((1, 2), np.float16), np.eye(2, dtype=np.float16), 1.0, "model", "judge")


def session(path: Path | None, model: str = "model", judge: str = "judge") -> Session:
    parts: dict[str, Any] = {
        "suite": SimpleNamespace(artifact_reference=lambda: path),
        "model": SimpleNamespace(digest=model),
        "scorer": SimpleNamespace(networks={"artifact": SimpleNamespace(digest=judge)}),
    }
    return cast(Session, SimpleNamespace(**parts))


def test_each_picture_is_far_or_near() -> None:
    outcomes = pd.DataFrame({"features_artifact": [np.array([0.5, 0.5], np.float32), np.array([3.0, 0.0], np.float32)]})
    assert _with_far(outcomes, reference())["far"].tolist() == [False, True]
    assert _with_far(outcomes, None)["far"].tolist() == [None, None]
    assert _with_far(outcomes[:0], reference())["far"].tolist() == []


@pytest.mark.parametrize(("changes", "fits"), [({}, True), ({"model": "other"}, False), ({"judge": "other"}, False)])
def test_a_reference_of_another_model_or_judge_is_not_used(tmp_path: Path, changes: dict[str, str], fits: bool) -> None:
    path = tmp_path / "reference.safetensors"
    reference().save(path)
    found = _artifact_reference(session(path, **changes))
    assert (found is not None) == fits


def test_a_suite_may_have_no_reference() -> None:
    assert _artifact_reference(session(None)) is None

"""Pickles of tensors are read; whatever else a pickle asks for is not done."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.errors import BenchError
from bench.unpickle import load_tensors, load_torch


class _Run:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.place}",)


class _Nested:
    """As a storage is pickled, but what lies within is another pickle that runs code."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return torch.storage._load_from_bytes, (self.data,)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_come_back(tmp_path: Path, protocol: int) -> None:
    tensors = {"Monet": torch.randn(3, 4).half(), "Van_Gogh": torch.arange(6).view(2, 3), "view": torch.randn(4, 4)[1:3].T}
    (tmp_path / "latents.pkl").write_bytes(pickle.dumps(tensors, protocol))
    found = load_tensors(tmp_path / "latents.pkl")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_code_does_not_run(tmp_path: Path) -> None:
    place = tmp_path / "ran"
    inner = io.BytesIO()
    torch.save({"x": _Run(place)}, inner, _use_new_zipfile_serialization=False)
    hostile = {
        "direct": pickle.dumps(_Run(place)), "in a dictionary": pickle.dumps({"Monet": _Run(place)}),
        "nested pickle": pickle.dumps({"Monet": _Nested(pickle.dumps(_Run(place)))}),
        "nested torch file": pickle.dumps({"Monet": _Nested(inner.getvalue())}), "builtin": b"cbuiltins\neval\n(V1+1\ntR.",
    }  # fmt: skip
    for name, data in hostile.items():
        (tmp_path / "latents.pkl").write_bytes(data)
        with pytest.raises(BenchError, match="does not hold tensors alone"):
            load_tensors(tmp_path / "latents.pkl")
        assert not place.exists(), name


def test_other_pickles_are_a_sentence(tmp_path: Path) -> None:
    for data in (b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"a": 1}), pickle.dumps({1: torch.zeros(1)})):
        (tmp_path / "latents.pkl").write_bytes(data)
        with pytest.raises(BenchError, match="does not hold tensors alone"):
            load_tensors(tmp_path / "latents.pkl")


def test_numbers_of_numpy_beside_tensors_are_read_and_code_is_not(tmp_path: Path) -> None:
    weights = {"model_state_dict": {"head.bias": torch.ones(2)}, "epoch": 3, "accuracy": np.float64(0.98), "best": np.float32(0.5)}
    torch.save(weights, tmp_path / "style50.pth")
    found = load_torch(tmp_path / "style50.pth")
    assert torch.equal(found["model_state_dict"]["head.bias"], torch.ones(2))
    assert found["accuracy"] == 0.98
    torch.save({"run": _Run(tmp_path / "it-ran")}, tmp_path / "hostile.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_torch(tmp_path / "hostile.pth")
    assert not (tmp_path / "it-ran").exists()

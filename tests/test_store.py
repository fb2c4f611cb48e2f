from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.erasure import load_erasure, save_erasure, stored_bytes
from bench.errors import BenchError
from bench.files import sha256_file, write_atomic
from bench.interfaces import Erasure, Weights
from bench.registry import load_object
from bench.store import Store
from bench.types import Card, Record

FRAME = pd.DataFrame({"style": ["neon", "pop"], "style_pred": ["neon", None], "score": [1.5, float("nan")], "png": [b"x", None]})
CARD = Card("t", "", "", ("style",))
RECORD = Record("uce", "uce:tokens=last", 1, {"a": 1}, CARD, "p", {"dtype": "float32"}, {"target": ["x"], "seed": [1]})


def run_folder(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "run")
    store.write_json("config.json", {"suite": "minicanvas"})
    return store


def test_units_come_back_and_damaged_ones_are_not_done(tmp_path: Path) -> None:
    store = run_folder(tmp_path)
    store.write_unit("abc", FRAME)
    found = store.read_unit("abc")
    assert found is not None
    pd.testing.assert_frame_equal(found, FRAME)
    assert store.read_unit("def") is None
    (file,) = store.all_unit_files()
    file.write_bytes(file.read_bytes()[:-1])
    assert store.read_unit("abc") is None
    store.write_unit("abc", FRAME.assign(score=2.0))
    again = store.read_unit("abc")
    assert again is not None
    assert again["score"].tolist() == [2.0, 2.0]
    assert len(store.all_unit_files()) == 1, "one file an identity"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BenchError, match="No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BenchError, match="exists and is not a run"):
        Store.create(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(BenchError, match="is not a run"):
        Store.open(tmp_path)
    with pytest.raises(BenchError, match="cannot be written"):
        Store.create(Path("/proc/nowhere/run"))


def test_records(tmp_path: Path) -> None:
    store = run_folder(tmp_path)
    with pytest.raises(BenchError, match="no records yet"):
        store.records()
    store.write_records([replace(RECORD, label="old")])
    store.write_records([RECORD])
    assert store.records() == [RECORD]
    other = Store.create(tmp_path / "other")
    other.write_records([RECORD, replace(RECORD, label="b", provenance={"plan": "another"})])
    with pytest.raises(BenchError, match="different plans"):
        other.records()
    assert Record.from_json(RECORD.to_json()).to_json() == RECORD.to_json()
    (store.folder / "records" / "uce_tokens=last.json").write_text("{}")
    with pytest.raises(BenchError, match="is not a record"):
        store.records()


def test_erasures_are_verified(tmp_path: Path) -> None:
    kind = load_object("methods.uce:TextMap")
    erasure = Erasure(text=kind(torch.randn(4, 4)), weights=Weights({"unet.a": torch.randn(2).bfloat16()}), notes={"n": 1})
    save_erasure(erasure, tmp_path)
    again = load_erasure(tmp_path, (kind,), torch.device("cpu"))
    assert torch.equal(again.text.matrix, erasure.text.matrix)
    assert torch.equal(again.weights.values["unet.a"], erasure.weights.values["unet.a"])
    assert again.notes == {"n": 1}
    assert stored_bytes(tmp_path) == sum(file.stat().st_size for file in tmp_path.iterdir())
    with pytest.raises(BenchError, match="damaged"):
        load_erasure(tmp_path, (), torch.device("cpu"))
    tensors = tmp_path / "tensors.safetensors"
    digest = sha256_file(tensors)
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert sha256_file(tensors) != digest
    with pytest.raises(BenchError, match="does not have the recorded digest"):
        load_erasure(tmp_path, (kind,), torch.device("cpu"))

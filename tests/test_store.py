from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench import packed
from bench.config import IMAGES
from bench.erasure import load_erasure, pack
from bench.errors import BenchError
from bench.files import write_atomic
from bench.interfaces import Erasure, Weights
from bench.registry import load_object
from bench.store import Store
from bench.types import Card, Record

FRAME = pd.DataFrame({"style": ["neon", "pop"], "style_pred": ["neon", None], "score": [1.5, float("nan")], "picture": [b"x", None]})
CARD = Card("t", "", "", ("style",))
RECORD = Record("uce", "uce:tokens=last", 1, {"a": 1}, CARD, "p", {"dtype": "float32"}, {"target": ["x"], "seed": [1]})


def run_folder(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "run")
    keys = ("suite", "preset", "targets", "seeds", "steps", "batch_size", "numerics", "protocol")
    store.write_json("config.json", dict.fromkeys(keys, "minicanvas"))
    return store


def test_units_come_back_and_damaged_ones_are_not_done(tmp_path: Path) -> None:
    store = run_folder(tmp_path)
    store.write_unit("abc", FRAME, "0123456789abcdef0", "sample")
    found = store.read_unit("abc")
    assert found is not None
    pd.testing.assert_frame_equal(found, FRAME)
    assert store.read_unit("def") is None
    (file,) = store.all_unit_files()
    assert (file.unit, file.erasure, file.images) == ("abc", "0123456789abcdef", "sample")
    served = {(erasure, images) for erasure in (None, "0123456789abcdef0", "f") for images in IMAGES if file.serves(erasure, images)}
    assert served == {(erasure, images) for erasure in (None, "0123456789abcdef0") for images in ("none", "sample")}
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert store.read_unit("abc") is None
    store.write_unit("abc", FRAME.assign(score=2.0), "f", "all")
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
    kind = load_object("methods.common.closed_form:TextMap")
    erasure = Erasure(text=kind(torch.randn(4, 4)), weights=Weights({"unet.a": torch.randn(2).bfloat16()}), notes={"n": 1})
    pack(erasure).save(tmp_path)
    again, digest = load_erasure(tmp_path, (kind,), torch.device("cpu"))
    assert torch.equal(again.text.matrix, erasure.text.matrix)
    assert torch.equal(again.weights.values["unet.a"], erasure.weights.values["unet.a"])
    assert again.notes == {"n": 1}
    assert packed.stored_digest(tmp_path) == digest
    pack(replace(erasure, weights=Weights({"unet.a": torch.randn(2)}))).save(tmp_path)
    assert load_erasure(tmp_path, (kind,), torch.device("cpu"))[1] == digest, "of two writers the first stays"
    with pytest.raises(BenchError, match=r"a part of the class .*, which its method does not declare"):
        load_erasure(tmp_path, (), torch.device("cpu"))
    tensors, index = tmp_path / f"{digest[:16]}.safetensors", tmp_path / "erasure.json"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(BenchError, match="do not have the digest that is recorded"):
        load_erasure(tmp_path, (kind,), torch.device("cpu"))
    packed.remove(tmp_path)
    assert packed.stored_digest(tmp_path) is None
    pack(erasure).save(tmp_path)
    index.write_text(index.read_text().replace('"n": 1', '"n": 2'))
    with pytest.raises(BenchError, match="does not have the digest that its first line states"):
        load_erasure(tmp_path, (kind,), torch.device("cpu"))

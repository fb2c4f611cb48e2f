"""Pictures for the report: within the budget, each once, whole ones beside the page where they are larger."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bench import gallery as module
from bench.gallery import gallery
from bench.store import Store


def picture(shade: int, size: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), shade).convert("RGB").save(buffer, "png")
    return buffer.getvalue()


def stored(folder: Path, size: int) -> Store:
    """The unedited model and two methods, one target, twelve requests, half of which show it."""
    store, units = Store(folder), []
    for unit, (method, target) in enumerate((("none", ""), ("mine", "style:neon"), ("yours", "style:neon"))):
        frame = pd.DataFrame([{
            "request": f"r{k:02d}", "style": "neon" if k % 2 else "pop", "object": f"o{k}", "seed": 1,
            "style_pred": "pop", "object_pred": f"o{k}", "picture": picture(20 + k + 20 * unit, size),
        } for k in range(12)])  # fmt: skip
        store.write_unit(f"{unit:016x}", frame, "", "all")
        units.append({"unit": f"{unit:016x}", "fit": f"f{unit}", "method": method, "target": target, "pictures": 12, "bundle": 0})
    store.write_json("plan.json", {"units": [*units, {**units[1], "unit": "f" * 16, "attack": "null-control"}], "plan": "p"})
    return store


def test_every_picture_once_where_there_is_room(tmp_path: Path) -> None:
    found = gallery([stored(tmp_path, 16)], tmp_path)
    assert len(found.items) == len(found.images) == 36
    assert not any(found.links)
    assert Image.open(io.BytesIO(base64.b64decode(found.images[0]))).size == (16, 16)
    assert {item["method"] for item in found.items if item["target"] == ""} == {"none"}


def test_a_budget_leaves_some_of_both_kinds_with_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path, 16)
    whole = sum(map(len, gallery([store], tmp_path).images))
    monkeypatch.setattr(module, "BUDGET", whole // 2)
    found = gallery([store], tmp_path)
    assert sum(map(len, found.images)) <= whole // 2 * 1.2
    shown = {(item["object"], item["method"]) for item in found.items}
    objects = {name for name, _ in shown}
    assert shown == {(name, method) for name in objects for method in ("none", "mine", "yours")}
    assert {item["style"] for item in found.items} == {"neon", "pop"}
    assert "more pictures are in the run's folder" in found.note


def test_larger_pictures_are_linked(tmp_path: Path) -> None:
    found = gallery([stored(tmp_path / "run", 200)], tmp_path)
    assert all((tmp_path / link).is_file() for link in found.links)
    assert Image.open(tmp_path / found.links[0]).size == (200, 200)
    assert Image.open(io.BytesIO(base64.b64decode(found.images[0]))).size == (128, 128)

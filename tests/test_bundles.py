"""What a device does with a bundle: units complete or nothing, the same bytes with sharing and without, mishaps one row or erasure wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.sampler import Sampler
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.identity import MethodSpec
from bench.interfaces import ActivationEdit, EditBank, Erasure, FitContext, Slots
from bench.plan import BASE, Fit, Unit
from bench.registry import method
from bench.scoring import Scorer
from bench.store import Store
from bench.suites.minicanvas import SUITE
from bench.types import Target

HOOK = "mid_block.attentions.0"
CARD = method("none").card


class _Bank(EditBank):
    def __init__(self, edits: Sequence[Any]) -> None:
        super().__init__()
        self.kind = edits[0].does

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        if self.kind == "shape":
            return x_out[:, :, 1:]
        return torch.where((slots.which >= 0)[:, None, None, None], x_out * torch.nan, x_out)


@dataclass(frozen=True, eq=False)
class Mishap(ActivationEdit):
    does: str
    hookpoints: tuple[str, ...] = (HOOK,)

    @classmethod
    def stack(cls, edits: Sequence[Any]) -> EditBank:
        return _Bank(edits)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load(SUITE, torch.device("cpu"))


class Told:
    """A worker in a folder, and what it said."""

    def __init__(self, folder: Path, model: DiffusionModel, scorer: Scorer, erasures: dict[str, Erasure], share: bool = True) -> None:
        self.warnings: list[str] = []
        self.pictures = 0
        sampler = Sampler(model, torch.float32, 8, share=share)
        self.store = Store.create(folder)
        self.worker = Worker(
            SUITE,
            self.store,
            model,
            scorer,
            sampler,
            SUITE.presets["smoke"],
            "sample",
            0,
            lambda text: None,
            self._advance,
            self.warnings.append,
        )
        self.worker.__dict__["erasure"] = lambda fit: erasures[fit.id]

    def _advance(self, pictures: int) -> None:
        self.pictures += pictures

    def run(self, units: Sequence[Unit]) -> dict[str, pd.DataFrame]:
        self.worker.execute(units)
        return {unit.id: frame for unit in units if (frame := self.store.read_unit(unit.id)) is not None}

    def files(self) -> dict[str, bytes]:
        return {file.path.name: file.path.read_bytes() for file in self.store.all_unit_files()}


def unit(name: str, target: str | None, cells: Sequence[tuple[str, str]]) -> Unit:
    spec = MethodSpec(name, name, 1, {}, CARD, True)
    requests = tuple(SUITE.request(style, obj, 1, 4) for style, obj in cells)
    return Unit(Fit(spec, Target.parse(target) if target else None, name), requests, f"{name}-unit")


CELLS = [("neon", "fish"), ("pop", "key"), ("sketch", "tree"), ("frost", "fish")]


def test_units_have_the_same_bytes_with_sharing_and_without(
    tmp_path: Path, model: DiffusionModel, scorer: Scorer, context: FitContext
) -> None:
    erasures, units = {BASE: Erasure()}, [unit(BASE, None, CELLS)]
    for number, concept in enumerate(SUITE.concepts):
        kind = method("saeuron")
        detection, error = ("calibrated", "saeuron-code")[number % 4 == 0], ("exact", "published-code")[number % 3 == 0]
        fitted = kind(kind.Config(detection=detection, error=error)).fit(context, [concept])
        erasures[str(concept)] = fitted
        units.append(unit(str(concept), str(concept), CELLS[: 2 + number % 3]))
    shared, alone = (Told(tmp_path / str(share), model, scorer, erasures, share) for share in (True, False))
    shared.run(units)
    alone.run(units[::-1])
    assert len(shared.files()) == len(units)
    assert shared.files() == alone.files()
    resumed = Told(tmp_path / "resumed", model, scorer, erasures)
    for part in (units[1::3], units[::3], units[2::3]):  # what is stacked beside an erasure, and whether the base is there, is no matter
        resumed.run(part)
    assert resumed.files() == alone.files()
    assert shared.pictures == alone.pictures == sum(len(one.requests) for one in units)


def test_a_latent_that_breaks_is_one_null_picture(tmp_path: Path, model: DiffusionModel, scorer: Scorer) -> None:
    erasures = {BASE: Erasure(), "bad": Erasure(activations=(Mishap("nan"),))}
    told = Told(tmp_path, model, scorer, erasures)
    units = [unit(BASE, None, CELLS), unit("bad", "object:fish", CELLS)]
    frames = told.run(units)
    assert frames["bad-unit"]["broken_at"].tolist() == [0] * 4
    for column in ("style_pred", "object_pred", "features_artifact", "sha256", "picture"):
        assert frames["bad-unit"][column].isna().all(), column
    assert frames["none-unit"]["broken_at"].isna().all()
    assert frames["none-unit"]["style_pred"].notna().all()
    assert "bad on object:fish" in told.warnings[0]
    assert "seed 1" in told.warnings[0]
    assert "step 1" in told.warnings[0]
    assert told.worker.left(units) == [], "it would break again"


def test_an_edit_that_changes_shape_fails_its_own_erasure(tmp_path: Path, model: DiffusionModel, scorer: Scorer) -> None:
    told = Told(tmp_path, model, scorer, {BASE: Erasure(), "bad": Erasure(activations=(Mishap("shape"),))})
    frames = told.run([unit(BASE, None, CELLS), unit("bad", "object:fish", CELLS)])
    assert list(frames) == ["none-unit"]
    assert "must keep shape and dtype" in told.worker.failed["bad"].reason


def test_a_hook_point_that_does_not_exist_fails_its_own_erasure(tmp_path: Path, model: DiffusionModel, scorer: Scorer) -> None:
    bad = Erasure(activations=(Mishap("nan", ("mid_block.attention.0",)),))
    told = Told(tmp_path, model, scorer, {BASE: Erasure(), "bad": bad})
    frames = told.run([unit(BASE, None, CELLS), unit("bad", "object:fish", CELLS)])
    assert list(frames) == ["none-unit"]
    assert 'did you mean "mid_block.attentions.0"' in told.worker.failed["bad"].reason


def test_out_of_memory_halves_the_slots_and_says_so(
    tmp_path: Path, model: DiffusionModel, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Sampler):
        def stream(self, rows: Any, probes: Any = (), stop: Any = None) -> Any:
            raise torch.OutOfMemoryError("no more")

    class Small(Sampler):
        def stream(self, rows: Any, probes: Any = (), stop: Any = None) -> Any:
            if self.slots > 4:
                raise torch.OutOfMemoryError("no more")
            return super().stream(rows, probes, stop)

    told = Told(tmp_path, model, scorer, {BASE: Erasure()})
    frames = told.run([unit(BASE, None, CELLS)])
    assert frames["none-unit"]["slots"].unique().tolist() == [8]
    told.worker.__dict__["sampler"] = Small(model, torch.float32, 8)
    frames = told.run([unit(BASE, None, CELLS)])
    assert frames["none-unit"]["slots"].unique().tolist() == [4]
    assert told.warnings == ["out of memory with 8 slots a call: going on with 4"]
    monkeypatch.setattr(Small, "stream", Full.stream)
    with pytest.raises(BenchError, match="Not even one picture"):
        told.run([unit(BASE, None, CELLS)])

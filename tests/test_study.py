"""The study of SAE methods, small: its tables say what must be true, its picture is there; locate finds the known blocks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.cli_sae import show_study
from bench.diffusion.model import DiffusionModel, attention_blocks
from bench.locate import heat_map, hookpoints, locate
from bench.scoring import load_judge
from bench.study import Study
from bench.suites.minicanvas import HOOKPOINTS, SUITE, MiniCanvas
from bench.types import Concept

pytestmark = pytest.mark.slow


class _Small(MiniCanvas):
    def masked_pictures(self, per_cell: int) -> tuple[list[tuple[str, str]], object, object]:
        cells, pixels, masks = super().masked_pictures(per_cell)
        return cells[::5], pixels[::5], masks[::5]


@pytest.fixture(scope="module")
def study(model: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pd.DataFrame]]:
    out = tmp_path_factory.mktemp("study")
    fish = Concept("object", "fish")
    return out, Study(_Small(), [fish], model, torch.bfloat16, 32, 4, 6, out, 36, lambda text: None).run()


def test_detectors_are_measured_for_every_concept(study: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    table = study[1]["detectors"]
    alone = {name for names in HOOKPOINTS.values() for name in names}
    assert set(table["hookpoint"]) == alone | {" + ".join(HOOKPOINTS["object"])}
    assert (table["false_positives_low"] <= table["false_positives"]).all()
    assert (table["false_positives_high"] >= table["false_positives"]).all()
    assert table["false_positives"].mean() < 0.02
    assert table.query("features == 2")["recall"].mean() > 0.95
    steps = study[1]["detectors-steps"]
    assert set(steps["hookpoint"]) == alone
    assert set(steps["concept"]) == {str(concept) for concept in SUITE.concepts}
    # An ROC curve that ends at AUROC 1 passes through recall 1.
    assert (steps.query("auroc == 1")["recall"] == 1).all()
    assert steps.query("step > 10")["auroc"].mean() > 0.9


def test_detected_patches_are_the_objects(study: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    late = study[1]["localisation"].query("timestep < 500")
    assert late["iou"].mean() > late["iou_shuffled"].mean() + 0.03


def test_strong_steering_moves_activations_more_than_replacement(study: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    shift = study[1]["activations"].query("hookpoint == @HOOKPOINTS['object'][0]").set_index("edit")
    assert shift.loc["steering ×-30", "norm_outside"] > 2 * shift.loc["replacement", "norm_outside"]
    assert shift["far"].between(0, 1).all()
    assert shift["artifact_auroc"].between(0, 1).all()
    assert shift.loc["steering ×-30", "mean_shift"] > shift.loc["steering ×-1", "mean_shift"]


def test_what_is_found_is_printed(study: tuple[Path, dict[str, pd.DataFrame]], capsys: pytest.CaptureFixture[str]) -> None:
    show_study(study[1])
    text = capsys.readouterr().out
    assert all(f"Detectors at {name}" in text for name in HOOKPOINTS["style"])
    assert "object:fish at mid_block.attentions.0" in text
    assert "localisation" in text


def test_everything_is_written(study: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    names = {path.name for path in study[0].iterdir()}
    assert names == {"detectors.csv", "detectors-steps.csv", "localisation.csv", "activations.csv", "look-fish.png", "latents-fish.png"}


def test_locate_finds_where_objects_are_decided(model: DiffusionModel) -> None:
    judge = load_judge(SUITE, "tuning", torch.device("cpu"))
    table = locate(SUITE, model, judge, torch.bfloat16, 8, 4, 6, lambda text: None)
    shares = table.set_index(["kind", "blocks"])["stays"]
    assert shares["object", "none"] >= 3 / 4
    assert shares["object", "all"] <= 1 / 4
    assert hookpoints(table)["object"] == HOOKPOINTS["object"][0]
    assert set(attention_blocks(model.unet)) <= set(table["blocks"])
    assert heat_map(table).size[0] > 100

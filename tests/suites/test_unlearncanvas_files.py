"""UnlearnCanvas from miniature published files through the command line, and what is said of damaged ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import miniature
import numpy as np
import pandas as pd
import pytest
from commands import bench
from PIL import Image

from bench.suites.unlearncanvas import PROFILES
from bench.types import Target

RUN = ("run", "--suite", "unlearncanvas", "--preset", "smoke", "--dtype", "float32", "--batch-size", "8", "--compile", "no")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.everything(tmp_path_factory.mktemp("assets"))


def test_the_suite_s_command_works_from_the_published_files(assets: Path, tmp_path: Path) -> None:
    found = bench(*RUN, "--methods", "saeuron,saeuron-detect", "--assets", str(assets), "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr


def pictures(folder: Path, style_target: str, seeds: tuple[int, ...] = (188,)) -> Path:
    """What a public script leaves of one target, as far as the preset quick asks for it."""
    suite = PROFILES["official"]
    preset = replace(suite.presets["quick"], seeds=len(seeds))
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for request in suite.requests(Target.parse(style_target), preset):
        picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(folder / f"{request.style}_{request.object}_seed{request.seed}.jpg")
    return folder


def test_pictures_that_are_there_already_are_scored(assets: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "esd" / "Van_Gogh", "style:Van_Gogh")
    gone = sorted(folder.glob("Van_Gogh_*"))[:3]
    for path in gone:
        path.unlink()
    (folder / "Monet_Unicorns_seed188.jpg").write_bytes(b"of nothing")
    score = (
        "score",
        "--suite",
        "unlearncanvas@official",
        "--preset",
        "quick",
        "--assets",
        str(assets),
        "--device",
        "cpu",
        "--out",
        "scores",
    )
    found = bench(*score, "esd", "--method", "ESD", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    said = " ".join(found.stderr.split())
    assert "style:Van_Gogh: 3 of 220 pictures are missing" in said
    assert all(path.name in said for path in gone)
    assert "1 files are not of the protocol" in said
    record = json.loads((tmp_path / "scores" / "records" / "ESD.json").read_text())
    assert record["provenance"]["external"] is True
    assert record["provenance"]["missing_pictures"] == 3
    assert record["outcomes"]["style_pred"].count(None) == 3
    assert len(record["outcomes"]["style"]) == 220
    assert "Score the unedited model's pictures too" in said

    base = tmp_path / "base"
    shutil.copytree(folder, base)
    assert bench(*score, "base", "--method", "none", cwd=tmp_path).returncode == 0
    table = pd.read_csv(tmp_path / "scores" / "leaderboard.csv")
    assert set(table["label"]) == {"none", "ESD"}
    ua = table[(table["label"] == "ESD") & (table["column"] == "ua")]
    expected = 1 - np.mean([
        s == p for s, p in zip(record["outcomes"]["style"], record["outcomes"]["style_pred"], strict=True) if s == "Van_Gogh" and p
    ])  # fmt: skip
    assert ua["value"].tolist() == pytest.approx([expected])
    assert ua["n"].tolist() == [17]

    wrong = bench(*score, "esd/Van_Gogh", "--method", "ESD", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "say of which one its pictures are (--target CONCEPT)" in " ".join(wrong.stderr.split())
    again = bench(*score, "esd/Van_Gogh", "--method", "ESD", "--target", "Van_Gogh", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "scores" / "records" / "ESD.json").read_text()) == record

"""UnlearnCanvas from miniature published files through the command line, and what is said of damaged ones."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import miniature
import numpy as np
import pandas as pd
import pytest
import torch
from commands import bench
from PIL import Image
from safetensors.torch import load_file

from bench.codec import decode
from bench.errors import BenchError
from bench.store import read_records
from bench.suites.unlearncanvas import PROFILES
from bench.suites.unlearncanvas import pictures as true_pictures
from bench.suites.unlearncanvas.published import ASSETS
from bench.suites.unlearncanvas.vocabulary import OBJECTS, THEMES
from bench.types import Concept, Target

RUN = ("run", "--suite", "unlearncanvas", "--preset", "smoke", "--dtype", "float32", "--batch-size", "8", "--compile", "no")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.everything(tmp_path_factory.mktemp("assets"))


def test_the_suite_s_command_works_from_the_published_files(assets: Path, tmp_path: Path) -> None:
    found = bench(*RUN, "--methods", "saeuron,saeuron-detect", "--assets", str(assets), "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    costs = [json.loads((tmp_path / "run" / "records" / f"{name}.json").read_text())["cost"] for name in ("saeuron", "saeuron-detect")]
    assert costs[0]["shared_seconds"] > costs[0]["fit_seconds"], "statistics are gathered once, and are nobody's fit"
    assert costs[1]["shared_seconds"] < 0.5 * costs[0]["shared_seconds"]


class Hostile:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.place}",)


def pictures(folder: Path, target: str) -> Path:
    """What a public script leaves of one target, as far as the preset smoke asks for it."""
    suite = PROFILES["official"]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for request in suite.requests(Target.parse(target), suite.presets["smoke"]):
        picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(folder / f"{request.style}_{request.object}_seed{request.seed}.jpg")
    return folder


def test_pictures_that_are_there_already_are_scored(assets: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "esd" / "Dogs", "object:Dogs")
    asked = len(list(folder.iterdir()))
    gone = sorted(folder.glob("*_Dogs_*"))[0]
    gone.unlink()
    (folder / "Monet_Unicorns_seed188.jpg").write_bytes(b"of nothing")
    score = (
        "score",
        "--suite",
        "unlearncanvas@official",
        "--preset",
        "smoke",
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
    assert f"object:Dogs: 1 of {asked} pictures are missing ({gone.name}); 1 files are not of the protocol" in said
    (record,) = read_records(tmp_path / "scores")
    assert record.provenance["external"] is True
    assert record.provenance["missing_pictures"] == 1
    assert record.outcomes["style_pred"].count(None) == 1
    assert len(record.outcomes["style"]) == asked
    assert "Score the unedited model's pictures too" in said

    (tmp_path / "esd" / "Van Gogh").mkdir()
    (tmp_path / "judge.py").write_text(JUDGE)
    more = bench(*score, "esd", "--method", "ESD", "--examine", "judge.py:broken", "--out", "examined", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "Folders that no concept names: Van Gogh" in more.stderr
    assert "19 concepts have no folder" in more.stderr
    examined = read_records(tmp_path / "examined")[0].outcomes
    assert [bool(far) for far in examined["far"] if far is not None] == [
        obj == "Dogs" for obj, far in zip(examined["object"], examined["far"], strict=True) if far is not None
    ]

    shutil.copytree(folder, tmp_path / "base")
    assert bench(*score, "base", "--method", "none", cwd=tmp_path).returncode == 0
    table = pd.read_csv(tmp_path / "scores" / "leaderboard.csv")
    assert set(table["label"]) == {"none", "ESD"}
    ua = table[(table["label"] == "ESD") & (table["column"] == "ua")]
    columns = (record.outcomes[name] for name in ("object", "object_pred"))
    own = [asked == seen for asked, seen in zip(*columns, strict=True) if asked == "Dogs" and seen]
    assert ua["value"].tolist() == pytest.approx([1 - np.mean(own)])
    assert ua["n"].tolist() == [len(own)]
    assert len(own) == len(list(folder.glob("*_Dogs_*")))

    wrong = bench(*score, "esd/Dogs", "--method", "ESD", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "say of which one its pictures are (--target CONCEPT)" in " ".join(wrong.stderr.split())
    again = bench(*score, "esd/Dogs", "--method", "ESD", "--target", "Dogs", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert record in read_records(tmp_path / "scores")


def run(assets: Path, *more: str, cwd: Path) -> tuple[int, str, str]:
    found = bench(*RUN, "--assets", str(assets), "--out", "run", *more, cwd=cwd)
    return found.returncode, " ".join(found.stdout.split()), " ".join(found.stderr.split())


def test_published_parameters_and_latents_take_the_place_of_own_ones(assets: Path, tmp_path: Path) -> None:
    params = miniature.class_params(tmp_path / "class_params.pth", {"Dogs": (99.0, -20.0), "Cats": (99.99, -5.0)})
    latents = miniature.latents(tmp_path / "cls_latents_dict_unet.up_blocks.1.attentions.1.pkl", OBJECTS, steps=4)
    own = ("--asset", f"class-params={params}", "--asset", f"object-latents={latents}")
    code, said, told = run(assets, "--methods", "saeuron", *own, cwd=tmp_path)
    assert code == 0, told
    assert "parameters published in class_params.pth, chosen per concept among 21 settings by the very judge that evaluates" in said
    record = json.loads((tmp_path / "run" / "records" / "saeuron.json").read_text())
    assert record["tuning"]["configs"]["object:Dogs"]["multiplier"] == -20.0
    assert record["tuning"]["configs"]["object:Dogs"]["percentile"] == 99.0
    untuned = json.loads((tmp_path / "run" / "records" / "saeuron__untuned_.json").read_text())
    assert untuned["config"]["multiplier"] == -1.0
    expected = torch.stack([own.float().mean(0) for own in pickle.loads(latents.read_bytes()).values()])
    gathered = [load_file(path) for path in (assets / "unlearncanvas" / "statistics").rglob("*.safetensors")]
    assert any(torch.allclose(own["means"].float(), expected, atol=1e-3) for own in gathered if own["means"].shape == expected.shape)


DAMAGE = {
    "model/style50/step19999/unet/diffusion_pytorch_model.safetensors": (b"cut", "unet cannot be read"),
    "model/style50/step19999/unet/config.json": (b"{", "unet cannot be read"),
    "classifiers/style50.pth": (b"<html>", "style50.pth is no classifier of UnlearnCanvas"),
    "classifiers/style50_cls.pth": (None, "style50_cls.pth has 51 outputs, 20 are needed: the two classifiers may have been exchanged"),
    "saes/unet.up_blocks.1.attentions.1/cfg.json": (b"[]", "cannot be read"),
    "saes/unet.up_blocks.1.attentions.1/sae.safetensors": (b"\0" * 100, "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_a_sentence(assets: Path, tmp_path: Path, name: str) -> None:
    root, (data, message) = tmp_path / "assets", DAMAGE[name]
    shutil.copytree(assets / "unlearncanvas", root / "unlearncanvas")
    path = root / "unlearncanvas" / name
    if data is None:
        shutil.copy(path.with_name("style50.pth"), path)
    else:
        path.write_bytes(data)
    code, said, told = run(root, "--methods", "saeuron", cwd=tmp_path)
    assert message in said + told
    assert "Traceback" not in told
    assert code == (1 if "saes" in name else 2), "a method without its files is a hole in the table, which has nothing else here"


def test_a_pickle_that_would_run_code_does_not(assets: Path, tmp_path: Path) -> None:
    hostile = pickle.dumps({"Dogs": Hostile(tmp_path / "ran")})
    (tmp_path / "cls_latents_dict_x.pkl").write_bytes(hostile)
    torch.save({"Dogs": Hostile(tmp_path / "ran")}, tmp_path / "class_params.pth")
    root = tmp_path / "assets"
    shutil.copytree(assets / "unlearncanvas", root / "unlearncanvas")
    torch.save({"model_state_dict": {"head.weight": Hostile(tmp_path / "ran")}}, root / "unlearncanvas" / "classifiers" / "style50.pth")
    for folder, more, message in (
        (assets, ("--asset", f"object-latents={tmp_path / 'cls_latents_dict_x.pkl'}"), "does not hold tensors alone"),
        (assets, ("--asset", f"class-params={tmp_path / 'class_params.pth'}"), "does not hold SAeUron's parameters"),
        (root, (), "is no classifier of UnlearnCanvas"),
    ):
        _, said, told = run(folder, "--methods", "saeuron", "--resume", "always", *more, cwd=tmp_path)
        assert message in said + told
        assert not (tmp_path / "ran").exists()


def test_a_file_that_changed_after_its_first_use_is_refused(assets: Path, tmp_path: Path) -> None:
    root = tmp_path / "assets"
    shutil.copytree(assets / "unlearncanvas", root / "unlearncanvas")
    listed = bench("assets", "list", "--assets", str(root), cwd=tmp_path)
    assert "here:" in listed.stdout
    assert "https://huggingface.co/bcywinski/SAeUron · Apache-2.0" in listed.stdout
    assert bench("assets", "verify", "--assets", str(root), cwd=tmp_path).returncode == 0
    path = root / "unlearncanvas" / "classifiers" / "style50.pth"
    path.write_bytes(path.read_bytes() + b" ")
    code, _, told = run(root, "--methods", "uce", cwd=tmp_path)
    assert code == 2
    assert "style50.pth has changed since it was first used" in told
    assert bench("assets", "verify", "--assets", str(root), cwd=tmp_path).returncode == 1
    accepted = bench("assets", "verify", "classifiers", "--accept", "--assets", str(root), cwd=tmp_path)
    assert accepted.returncode == 0, accepted.stdout
    assert bench("assets", "verify", "--assets", str(root), cwd=tmp_path).returncode == 0


def test_what_is_missing_is_named_with_the_command(tmp_path: Path) -> None:
    code, _, told = run(tmp_path / "nothing", cwd=tmp_path)
    assert code == 2
    assert "python -m bench assets fetch --suite unlearncanvas model classifiers" in told
    wrong = bench("assets", "fetch", "modle", cwd=tmp_path)
    assert wrong.returncode == 2
    assert 'did you mean "model"' in wrong.stderr
    code, _, told = run(tmp_path, "--asset", "model=/no/such/place", cwd=tmp_path)
    assert code == 2
    assert "there is no such file or folder" in told


JUDGE = """
def broken(pixels, prompts):
    assert pixels.dtype.name == "uint8" and len(pixels) == len(prompts)
    return ["Dogs" in prompt for prompt in prompts]
"""


def test_distances_clip_score_and_a_judge_of_one_s_own(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniature.images(tmp_path / "images", {(theme, obj): 1 for theme in THEMES for obj in OBJECTS})
    miniature.inception(tmp_path / "inception-2015-12-05.pt")
    miniature.clip(tmp_path / "clip")
    (tmp_path / "judge.py").write_text(JUDGE)
    monkeypatch.setattr(true_pictures, "PER_CELL", 1)
    named = {"images": "images", "inception-clean-fid": "inception-2015-12-05.pt", "clip": "clip"}
    own = [part for name, place in named.items() for part in ("--asset", f"{name}={tmp_path / place}")]
    refused = run(assets, "--methods", "uce", *own, cwd=tmp_path)
    assert refused[0] == 2
    assert "is not the published file" in refused[2], "TorchScript is a program: only the published one is run"
    (tmp_path / "renamed.pt").write_bytes((tmp_path / "inception-2015-12-05.pt").read_bytes() + b" ")
    renamed = [*own[:2], "--asset", f"inception-clean-fid={tmp_path / 'renamed.pt'}"]
    assert "is not the published file" in run(assets, "--methods", "uce", *renamed, cwd=tmp_path)[2], "nor one of another name"
    monkeypatch.setitem(ASSETS, "inception-clean-fid", replace(ASSETS["inception-clean-fid"], sha256=""))
    code, said, told = run(assets, "--methods", "uce", *own, "--examine", "clip-score,judge.py:broken", cwd=tmp_path)
    assert code == 0, told
    table = pd.read_csv(tmp_path / "run" / "leaderboard.csv").set_index(["label", "column"])["value"]
    assert table["uce", "ar_target"] == 1.0
    assert table["uce", "ar_retained"] == 0.0
    assert table["uce", "clip_retained"] >= 0
    assert np.isfinite(table["uce", "kid"])
    assert ("uce", "fid") not in table.index, "of so few pictures there is none"
    assert "FID (clean) and KID are those of clean-fid" in said
    record = json.loads((tmp_path / "run" / "records" / "uce.json").read_text())
    assert record["provenance"]["judges"].keys() == {"evaluation", "inception-clean-fid", "clip", "artifact"}
    for examine, message in (
        ("judge.py:nothing", "cannot be used"), ("clip-scores", 'did you mean "clip-score"'),
        ("judge.py:broken,judge.py:broken", "two of them say the same"),
    ):  # fmt: skip
        code, _, told = run(assets, "--methods", "uce", *own, "--examine", examine, cwd=tmp_path)
        assert code == 2
        assert message in told


def test_methods_train_on_pictures_that_distances_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, cats = PROFILES["official"], Concept("object", "Cats")
    requests = suite.example_requests(cats, 3, True, 4)
    monkeypatch.setenv("BENCH_ASSETS", str(tmp_path / "empty"))
    assert suite.assets.examples == "sampled"
    assert suite.example_pictures(requests) is None
    folder = miniature.images(tmp_path / "images", {(request.style, "Cats"): 6 for request in requests})
    monkeypatch.setenv("BENCH_ASSETS", str(tmp_path))
    monkeypatch.setattr("bench.suites.unlearncanvas.UnlearnCanvas._pictures", lambda self: folder)
    found = suite.example_pictures(requests)
    assert found.shape == (3, 512, 512, 3)
    first = Image.open(folder / requests[0].style / "Cats" / "6.jpg").resize((512, 512), Image.Resampling.LANCZOS)
    assert np.array_equal(found[0], np.asarray(first))
    (folder / requests[1].style / "Cats" / "6.jpg").unlink()
    with pytest.raises(BenchError, match="methods train on it"):
        suite.example_pictures(requests)


def test_the_hub_s_parquet_serves_too(tmp_path: Path) -> None:
    cells = [(theme, obj) for theme in ("Artist_Sketch", "Sketch", "Seed_Images") for obj in OBJECTS]
    folder = miniature.images(tmp_path / "images", dict.fromkeys(cells, 6))
    miniature.parquet(tmp_path / "parquet", folder)
    themes = ("Artist_Sketch", "Sketch", "Seed_Images")
    read = {place: list(true_pictures.true_pictures(tmp_path / place, themes)) for place in ("images", "parquet")}
    for found in read.values():
        counts = pd.Series([cell for cells, _ in found for cell in cells]).value_counts()
        assert set(counts) == {5}
        assert len(counts) == 60
    pictures = [
        sorted((cell, own.tobytes()) for cells, pixels in found for cell, own in zip(cells, pixels, strict=True)) for found in read.values()
    ]
    assert pictures[0] == pictures[1]
    miniature.images(tmp_path / "other", {("Realistic_Watercolor", "Cats"): 5, ("Watercolor", "Cats"): 5})
    miniature.parquet(tmp_path / "both", tmp_path / "other")
    expected = {decode(path.read_bytes()).tobytes() for path in (tmp_path / "other" / "Watercolor" / "Cats").iterdir()}
    with pytest.raises(BenchError, match="0 pictures of Watercolor/Architectures"):
        list(true_pictures.true_pictures(tmp_path / "both", ("Watercolor",)))
    parquet = sorted((tmp_path / "both").iterdir())
    found = [own.tobytes() for _, own in itertools.islice(true_pictures._from_parquet(parquet, [("Watercolor", "Cats")]), 9)]
    assert set(found) == expected, "a realistic watercolor is none"
    (parquet[0]).write_bytes(b"junk")
    with pytest.raises(BenchError, match="distances need it"):
        list(true_pictures.true_pictures(tmp_path / "both", ("Watercolor",)))
    (folder / "Sketch" / "Cats" / "3.jpg").unlink()
    with pytest.raises(BenchError, match=r"Sketch/Cats/3\.jpg cannot be read"):
        list(true_pictures.true_pictures(folder, themes))


def test_files_are_fetched_from_where_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path]] = []

    def hub(name: str, repo_type: str | None, local_dir: Path, allow_patterns: list[str]) -> None:
        asked.append((name, local_dir))
        assert allow_patterns == ["unet.*/*"]
        miniature.saes(local_dir)

    def drive(id: str, output: str, resume: bool, quiet: bool) -> None:
        asked.append((id, Path(output)))
        assert resume
        miniature.classifiers(Path(output) / "cls_model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.setattr("gdown.download_folder", drive)
    fetch = ("assets", "fetch", "saes", "classifiers", "--assets", str(tmp_path))
    assert bench(*fetch, cwd=tmp_path).returncode == 0
    place = tmp_path / "unlearncanvas"
    assert asked == [("1AoazlvDgWgc3bAyHDpqlafqltmn4vm61", place / "classifiers"), ("bcywinski/SAeUron", place / "saes")]
    locked = json.loads((tmp_path / "assets.lock.json").read_text())
    assert set(locked["unlearncanvas/classifiers"]) == {"style50.pth", "style50_cls.pth"}
    assert bench(*fetch, cwd=tmp_path).returncode == 0
    assert len(asked) == 2, "what is whole is not fetched again"

    def broken(**arguments: object) -> None:
        raise OSError("the connection was lost")

    monkeypatch.setattr("gdown.download_folder", broken)
    found = bench("assets", "fetch", "classifiers", "--again", "--assets", str(tmp_path), cwd=tmp_path)
    assert found.returncode == 2
    assert "unlearncanvas/classifiers" not in json.loads((tmp_path / "assets.lock.json").read_text())
    miniature.classifiers(place / "classifiers")
    assert "not here" in bench("assets", "list", "--assets", str(tmp_path), cwd=tmp_path).stdout.split("classifiers")[2]
    monkeypatch.setattr("gdown.download_folder", lambda **arguments: None)
    assert bench(*fetch, cwd=tmp_path).returncode == 0, "what was begun is gone on with until the library says that it is whole"
    said = " ".join(found.stderr.split())
    assert "the connection was lost): give the command again to continue, or name the files where you have them" in said

    monkeypatch.setattr("gdown.download_folder", broken)
    assert bench("assets", "fetch", "classifiers", "--again", "--assets", str(tmp_path), cwd=tmp_path).returncode == 2
    miniature.classifiers(place / "classifiers")  # by hand, as where a quota is used up
    listed = ("assets", "list", "--assets", str(tmp_path))
    assert f"here: {place / 'classifiers'}" in bench(*listed, "--asset", f"classifiers={place / 'classifiers'}", cwd=tmp_path).stdout
    assert bench("assets", "verify", "classifiers", "--accept", "--assets", str(tmp_path), cwd=tmp_path).returncode == 0
    said = bench(*listed, cwd=tmp_path).stdout
    assert f"here: {place / 'classifiers'}" in said
    digest = json.loads((tmp_path / "assets.lock.json").read_text())["unlearncanvas/classifiers"]["style50.pth"]["sha256"]
    assert f"{digest}  style50.pth" in said

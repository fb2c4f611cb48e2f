"""A suite as a TOML file: from nothing but data to a table, and what is said of mistakes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import miniature
import miniature_sdxl
import pandas as pd
import pytest
from commands import bench

from bench.registry import suite
from bench.suites.from_file import SuiteFile
from bench.types import Target

DOCS = Path(__file__).parents[2] / "docs" / "suites.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the documentation, beside a model and a judge of the names that it has."""
    place = tmp_path_factory.mktemp("suite")
    example = re.search(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example is not None
    (place / "painters.toml").write_text(example[1])
    miniature.model(place / "stable-diffusion-v1-4")
    miniature.clip(place / "clip-vit-large-patch14")
    return place


def test_the_documented_file_is_run(folder: Path) -> None:
    shown = bench("show", "painters.toml", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "a painting of a OBJECT in the style of STYLE" in shown.stdout
    run = (
        "run",
        "--suite",
        "painters.toml",
        "--methods",
        "uce",
        "--concepts",
        "all",
        "--steps",
        "2",
        "--dtype",
        "float32",
        "--compile",
        "no",
    )
    found = bench(*run, "--batch-size", "8", cwd=folder)
    assert found.returncode == 0, found.stderr
    (place,) = (folder / "results" / "runs").iterdir()
    assert place.name.startswith("painters-quick")
    table = pd.read_csv(place / "leaderboard.csv")
    assert set(table["protocol"]) == {"painters@file-v1/quick/2-steps"}
    assert table[(table["label"] == "uce") & (table["column"] == "judged")]["value"].tolist() == [9, 9]


def test_its_prompts_and_splits(folder: Path) -> None:
    own = suite(str(folder / "painters.toml"))
    requests = own.requests(Target.parse("style:Van_Gogh"), own.presets["full"])
    assert len(requests) == 9 * 5
    assert requests[0].prompt == "a painting of a dog in the style of Van Gogh"
    (one,) = own.split_requests("tune", 1, 50)
    assert one.prompt == "a dog, Van Gogh style"
    assert own.method_settings == {"esd": {"iterations": 500}}


def test_a_distilled_sdxl_is_a_suite_too(folder: Path, tmp_path: Path) -> None:
    miniature_sdxl.model(tmp_path / "sdxl-turbo")
    (tmp_path / "clip").symlink_to(folder / "clip-vit-large-patch14")
    (tmp_path / "turbo.toml").write_text("""
name = "turbo"
model = "sdxl-turbo"
styles = ["Monet", "photo"]
objects = ["dog", "tree"]
template = "a {object}, {style} style"
guidance_scale = 0.0
judge = { kind = "clip-zero-shot", folder = "clip" }
[presets.quick]
concepts = ["style:Monet"]
steps = 1
scheduler = "euler-ancestral"
[presets.full]
steps = 1
scheduler = "euler-ancestral"
""")
    run = ("run", "--suite", "turbo.toml", "--methods", "uce,negative-prompt", "--dtype", "float32", "--compile", "no")
    found = bench(*run, "--batch-size", "4", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    table = pd.read_csv(tmp_path / "run" / "leaderboard.csv")
    assert table[(table["label"] == "uce") & (table["column"] == "judged")]["value"].tolist() == [2]
    assert set(table["protocol"]) == {"turbo@file-v1/quick/1-steps/euler-ancestral"}
    assert "at a guidance scale of 0 there is none" in " ".join(found.stdout.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": ["x"]}, "style: extra inputs are not permitted"),
        ({"styles": []}, "styles: tuple should have at least 1 item"),
        ({"template": "{subject}"}, "is no suite"),
        ({"codec": "webp"}, "codec: string should match pattern"),
        ({"judge": {"kind": "clip-zero-shot"}}, "judge.folder: field required"),
        ({"judge": {"kind": "clip", "folder": "clip-vit-large-patch14"}}, 'Unknown classifier "clip"'),
        ({"judge": {"kind": "clip-zero-shot", "folder": "nowhere"}}, "is no CLIP model"),
        ({"model": "nowhere"}, "is no diffusers model folder"),
        ({"presets": ("quick",)}, "presets: value error, there must be one called full"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    presets = change.pop("presets", ("quick", "full"))
    body = {**tomllib.loads((folder / "painters.toml").read_text()), **change}
    for name in ("stable-diffusion-v1-4", "clip-vit-large-patch14"):
        (tmp_path / name).symlink_to(folder / name)
    from bench.tuned import toml

    flat = {key: value for key, value in body.items() if not isinstance(value, dict)}
    text = "\n".join(toml({"x": flat}).splitlines()[1:]) + "\n"
    text += f"judge = {{ {', '.join(f'{key} = {value!r}' for key, value in body['judge'].items())} }}\n"
    text += "".join(f"[presets.{name}]\nconcepts = ['style:Monet']\nsteps = 2\n" for name in presets)
    (tmp_path / "own.toml").write_text(text)
    found = bench("run", "--suite", "own.toml", "--methods", "uce", "--dtype", "float32", "--batch-size", "2", cwd=tmp_path)
    assert found.returncode == 2
    assert message in " ".join(found.stderr.split()).lower() or message in " ".join(found.stderr.split())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    found = bench("show", "nowhere.toml", cwd=tmp_path)
    assert found.returncode == 2
    assert "docs/suites.md shows one" in found.stderr


def test_every_entry_is_documented() -> None:
    text = DOCS.read_text()
    assert all(name in text for name in SuiteFile.model_fields)

"""A look inside an SAE's edit says what the edit did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import bench
from conftest import SLOTS, request_of

from bench.diffusion.model import DiffusionModel
from bench.interfaces import Erasure, FitContext
from bench.registry import method
from bench.suites.minicanvas import SUITE
from bench.types import Concept
from methods.sae.inside import inside

FISH = Concept("object", "fish")
REQUESTS = [request_of("neon", "fish"), request_of("pop", "key")]


@pytest.fixture(scope="module")
def erasure(context: FitContext) -> Erasure:
    kind = method("saeuron")
    fitted: Erasure = kind(kind.Config(**SUITE.method_settings.get("saeuron", {}))).fit(context, [FISH])
    return fitted


def test_patches_latents_and_pictures(model: DiffusionModel, erasure: Erasure) -> None:
    pool = SUITE.split_requests("example", 12, 4)
    found, pictures = inside(model, {"fish": erasure, "none": Erasure()}, {"fish": REQUESTS}, pool, torch.float32, SLOTS)
    assert found.keys() == {"fish"}, "others have nothing to show"
    assert len(pictures) == len(pool)
    seen = found["fish"]
    for masks, base, edited in zip(seen["masks"], seen["base"], seen["edited"], strict=True):
        for name, rows in masks.items():
            assert len(rows) == 2 * 4, "each step, both halves of guidance"
            assert {len(row) for row in rows} == {seen["grid"][name] ** 2}
        touched = any("1" in row for rows in masks.values() for row in rows)
        assert touched == (not torch.equal(base, edited)), "what no patch is changed of is the same picture"
    assert any("1" in row for row in next(iter(seen["masks"][0].values())))
    for latent in seen["latents"]:
        assert any(latent["strengths"])
        assert len(latent["strengths"]) == 4, "the run's steps, not those that it was fitted for"
        assert len(set(latent["top"])) == 6
    shows = [request.object == "fish" for request in pool]
    strongest = [latent["top"][0] for latent in seen["latents"]]
    assert sum(shows[place] for place in strongest) > len(strongest) * sum(shows) / len(shows), "they fire for fish, more than by chance"


def test_a_run_is_looked_into_and_its_page_shows_it(tmp_path: Path) -> None:
    run = ("run", "--preset", "smoke", "--steps", "4", "--batch-size", "4", "--dtype", "float32", "--tuning", "untuned", "--out", "run")
    done = bench(*run, "--methods", "saeuron,uce", "--concepts", "fish", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = bench("look", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (own,) = json.loads((tmp_path / "run" / "look.json").read_text())["looks"]
    assert (own["method"], own["target"]) == ("saeuron (untuned)", "object:fish")
    assert own["latents"][0]["hookpoint"] in own["grid"]
    assert '"looks":[{' in (tmp_path / "run" / "report.html").read_text()
    done = bench("look", "run", "--methods", "uce", cwd=tmp_path)
    assert done.returncode == 2
    assert "`look` is for saeuron" in " ".join(done.stderr.split())
    done = bench("look", "run", "--methods", "sauron", cwd=tmp_path)
    assert "it has saeuron (untuned), uce" in " ".join(done.stderr.split())

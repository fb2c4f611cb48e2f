"""SAeUron and PER on the shipped SAEs: fits, tables, detectors' promises, and one clear sentence for every bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.config import method_config
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.erasure import load_erasure, pack
from bench.errors import BenchError
from bench.interfaces import Erasure, FitContext
from bench.registry import method
from bench.suites.minicanvas import HOOKPOINTS, SUITE
from bench.types import Assets, Concept, GenerationRequest
from methods.sae.autoencoder import SAEConfig, SparseAutoencoder, folder_of, load_sae, sae_digest
from methods.sae.build import SAEBuild
from methods.sae.calibration import load_detectors
from methods.sae.statistics import load_statistics
from methods.sae.training import SAERecipe

CPU = torch.device("cpu")
FISH, NEON = Concept("object", "fish"), Concept("style", "neon")
SAES = SUITE.assets.sae_folder
BLOCKS = [(kind, name) for kind, names in HOOKPOINTS.items() for name in names]


def fit(context: FitContext, name: str, concepts: list[Concept], **settings: object) -> Erasure:
    kind = method(name)
    return kind(kind.Config(**settings)).fit(context, concepts)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The suite's SAEs in a folder that may be damaged."""
    return Path(shutil.copytree(SAES, tmp_path / "saes"))


@pytest.mark.parametrize(("kind", "name"), BLOCKS)
def test_shipped_saes_are_whole(model: DiffusionModel, kind: str, name: str) -> None:
    folder = folder_of(SAES, name)
    sae = load_sae(folder, CPU)
    stats = load_statistics(folder, sae.digest, model.digest)
    detectors = load_detectors(folder, sae.digest, model.digest)
    wanted = tuple(str(c) for c in SUITE.concepts if c.kind == kind)
    assert stats.concepts == detectors.concepts == wanted
    assert json.loads((folder / "training.json").read_text())["fvu"]["conditional"] < 0.2
    assert not stats.means.isnan().any()


@pytest.mark.parametrize(("kind", "name"), BLOCKS)
def test_calibrated_detectors_keep_their_promise_on_the_verify_split(model: DiffusionModel, kind: str, name: str) -> None:
    """Thresholds come from the calibrate split; on the verify split, pooled over concepts, the rate is near α = 1 %."""
    folder = folder_of(SAES, name)
    detectors = load_detectors(folder, sae_digest(folder), model.digest)
    fired, unrelated, recalls = 0, 0, []
    for c in range(len(detectors.concepts)):
        fires = detectors.verify[c, 1] > detectors.threshold(c, 2, 0.01)
        fired += int(fires[~detectors.verify_shows[c]].sum())
        unrelated += int((~detectors.verify_shows[c]).sum())
        recalls.append(float(fires[detectors.verify_shows[c]].float().mean()))
    assert unrelated > 1000 * len(detectors.concepts)
    assert fired / unrelated < 0.02
    assert sorted(recalls)[len(recalls) // 2] > 0.5


@pytest.mark.parametrize("detection", ["calibrated", "saeuron-code"])
@pytest.mark.parametrize(("name", "concept"), [("saeuron", FISH), ("saeuron", NEON), ("saeuron-detect", FISH)])
def test_it_acts_and_survives_saving(
    context: FitContext, model: DiffusionModel, tmp_path: Path, name: str, concept: Concept, detection: str
) -> None:
    erasure = fit(context, name, [concept], detection=detection)
    pack(erasure).save(tmp_path)
    again, _ = load_erasure(tmp_path, method(name).parts, CPU)
    request = SUITE.request("neon", "fish", 1, 4)
    found, base = (sample(model, [Row(request, e)], torch.float32, 2) for e in (again, Erasure()))
    assert torch.equal(found.latents, sample(model, [Row(request, erasure)], torch.float32, 2).latents)
    assert (int(found.first_edit[0]) >= 0) == (not torch.equal(found.latents, base.latents))
    assert int(found.first_edit[0]) >= 0
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 100_000


def test_inputs_name_every_file_and_follow_its_contents(copied: Path) -> None:
    kind = method("saeuron")
    own = kind().inputs(SUITE.assets, [FISH])
    assert {key.partition("/")[0] for key in own} == set(HOOKPOINTS["object"])
    assert kind().inputs(Assets(HOOKPOINTS, copied), [FISH]) == own
    file = folder_of(copied, HOOKPOINTS["object"][0]) / "statistics.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    assert kind().inputs(Assets(HOOKPOINTS, copied), [FISH]) != own


def test_several_concepts_at_once(context: FitContext) -> None:
    both = fit(context, "saeuron", [NEON, FISH]).activations[0]
    assert set(both.hookpoints) == {*HOOKPOINTS["style"], *HOOKPOINTS["object"]}
    with pytest.raises(BenchError, match=r"shared by 4 detectors.*take alpha=0.0034 or more"):
        fit(context, "saeuron", [FISH, Concept("object", "star")], alpha=0.0012)
    assert fit(context, "saeuron", [FISH, Concept("object", "star")], alpha=0.0034).activations


def test_hook_points_are_given_as_text() -> None:
    config = method_config("saeuron", method("saeuron").Config, {"hookpoints": "+".join(HOOKPOINTS["object"])})
    assert config.hookpoints == HOOKPOINTS["object"]


def test_a_percentile_is_checked() -> None:
    with pytest.raises(BenchError, match="percentile"):
        method_config("saeuron", method("saeuron").Config, {"percentile": 100})


def test_bad_inputs_are_sentences(context: FitContext, copied: Path, model: DiffusionModel) -> None:
    block = HOOKPOINTS["object"][0]
    with pytest.raises(BenchError, match="no SAE"):
        fit(context, "saeuron", [FISH], sae=copied / "nowhere")
    with pytest.raises(BenchError, match="concepts but not style:neon"):
        fit(context, "saeuron", [NEON], hookpoints=HOOKPOINTS["object"], detection="saeuron-code")
    with pytest.raises(BenchError, match="1 to 8 latents"):
        fit(context, "saeuron", [FISH], gate_features=9)
    with pytest.raises(BenchError, match="no hook point for concepts of kind object"):
        fit(replace(context, assets=Assets({}, SAES)), "saeuron", [FISH])
    with pytest.raises(BenchError, match="no SAEs"):
        fit(replace(context, assets=Assets(HOOKPOINTS)), "saeuron", [FISH])

    torch.manual_seed(0)
    SparseAutoencoder(SAEConfig(128, 4, num_latents=64)).save(folder_of(copied, block))
    with pytest.raises(BenchError, match="is of another SAE"):
        fit(context, "saeuron", [FISH], sae=copied)

    (folder_of(copied, block) / "sae.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(BenchError, match=r"damaged|cannot be read"):
        load_sae(folder_of(copied, block), CPU)


def test_an_sae_of_another_width_is_refused(context: FitContext, tmp_path: Path, model: DiffusionModel) -> None:
    block = HOOKPOINTS["object"][0]
    torch.manual_seed(0)
    SparseAutoencoder(SAEConfig(64, 4, num_latents=32)).save(folder_of(tmp_path, block))
    digest = sae_digest(folder_of(tmp_path, block))
    with pytest.raises(BenchError, match="takes 64 channels, the block puts out 128"):
        fit(context, "saeuron", [FISH], hookpoints=(block,), sae=tmp_path)
    shutil.copytree(folder_of(tmp_path, block), folder_of(tmp_path, "mid_block.nowhere"))
    with pytest.raises(BenchError, match="has no block"):
        fit(context, "saeuron", [FISH], hookpoints=("mid_block.nowhere",), sae=tmp_path)
    edit = fit(context, "saeuron", [FISH], hookpoints=(block,)).activations[0]
    wrong = replace(edit, saes=(str(folder_of(tmp_path, block)),), digests=(digest,), latents=edit.latents.clamp(max=31))
    with pytest.raises(BenchError, match="takes 64 channels, the block puts out 128"):
        sample(model, [Row(SUITE.request("neon", "fish", 1, 4), Erasure(activations=(wrong,)))], torch.float32, 2)


def test_statistics_of_other_steps_are_refused(context: FitContext, copied: Path, model: DiffusionModel) -> None:
    erasure = fit(context, "saeuron", [FISH])
    with pytest.raises(BenchError, match="statistics of 20 steps"):
        sample(model, [Row(SUITE.request("neon", "fish", 1, 100), erasure)], torch.float32, 2)
    folder = folder_of(copied, HOOKPOINTS["object"][0])
    detectors = load_detectors(folder, sae_digest(folder), model.digest)
    replace(detectors, timesteps=detectors.timesteps[::2]).save(folder)
    with pytest.raises(BenchError, match="of 10 steps, its statistics of 20"):
        fit(context, "saeuron", [FISH], sae=copied)


def test_a_build_checks_what_it_finds(copied: Path, model: DiffusionModel) -> None:
    block = HOOKPOINTS["object"][0]

    def build(steps: int) -> SAEBuild:
        def requests(split: str, count: int, start: int) -> tuple[GenerationRequest, ...]:
            return SUITE.split_requests(split, count, steps, start)

        pictures = dict.fromkeys(("statistics", "select", "calibrate", "verify"), 12)
        return SAEBuild(model, {block: [FISH]}, requests, SAERecipe(), copied, torch.float32, 8, steps, pictures, lambda text: None)

    with pytest.raises(BenchError, match="statistics are of 20 steps, this command has 4"):
        build(4).run(["calibration"])
    SparseAutoencoder(SAEConfig(64, 4, num_latents=32)).save(folder_of(copied, block))
    with pytest.raises(BenchError, match="takes 64 channels, the block puts out 128"):
        build(20).run(["statistics"])


def test_a_published_configuration_is_read_as_it_is(copied: Path) -> None:
    folder = folder_of(copied, HOOKPOINTS["object"][0])
    published = json.loads((folder / "cfg.json").read_text())
    own = load_sae(folder, CPU)
    shorter = {key: value for key, value in published.items() if key in ("d_in", "k", "expansion_factor")}
    (folder / "cfg.json").write_text(json.dumps({**shorter, "signed": False, "hookpoint": "unknown"}))
    again = load_sae(folder, CPU)
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.encode(x), own.encode(x))
    (folder / "cfg.json").write_text(json.dumps({**published, "input_unit_norm": True}))
    with pytest.raises(BenchError, match="input_unit_norm"):
        load_sae(folder, CPU)


def test_replacement_under_a_foreign_sae(context: FitContext, tmp_path: Path, model: DiffusionModel) -> None:
    """Another SAE in the published format: gather its statistics, name its folder."""
    block = HOOKPOINTS["object"][0]
    torch.manual_seed(0)
    SparseAutoencoder(SAEConfig(128, 4, num_latents=64)).save(folder_of(tmp_path, block))
    with pytest.raises(BenchError, match="statistics"):
        fit(context, "saeuron-detect", [FISH], sae=tmp_path, hookpoints=(block,), detection="saeuron-code")
    concepts = [concept for concept in SUITE.concepts if concept.kind == "object"]

    def requests(split: str, count: int, start: int) -> tuple[GenerationRequest, ...]:
        return SUITE.split_requests(split, count, 4, start)

    build = SAEBuild(model, {block: concepts}, requests, SAERecipe(), tmp_path, torch.float32, 8, 4, {"statistics": 36}, lambda text: None)
    build.run(["statistics"])
    with pytest.raises(BenchError, match="calibration"):
        fit(context, "saeuron-detect", [FISH], sae=tmp_path, hookpoints=(block,))
    erasure = fit(context, "saeuron-detect", [FISH], sae=tmp_path, hookpoints=(block,), detection="saeuron-code")
    found = sample(model, [Row(SUITE.request("neon", "fish", 1, 4), erasure)], torch.float32, 2)
    assert int(found.first_edit[0]) >= 0


def test_more_steps_than_calibrated_are_refused(context: FitContext) -> None:
    with pytest.raises(BenchError, match="look at 20 steps; at 40"):
        fit(replace(context, steps=40), "saeuron", [FISH])
    assert fit(replace(context, steps=40), "saeuron", [FISH], detection="saeuron-code").activations


def test_more_features_than_latents_are_refused(context: FitContext) -> None:
    with pytest.raises(BenchError, match="the SAE has 1024 latents"):
        fit(context, "saeuron", [FISH], features=1025)


def test_saes_of_two_folders_act_in_one_batch(context: FitContext, copied: Path, model: DiffusionModel) -> None:
    """As two rows of a table with other SAEs do: each picture is the one that it is alone."""
    for name in HOOKPOINTS["object"]:
        body = load_sae(folder_of(copied, name), CPU)
        scaled = SparseAutoencoder(body.config)
        scaled.load_state_dict(body.state_dict())
        with torch.no_grad():
            scaled.W_dec.mul_(0.5)
        scaled.save(folder_of(copied, name))
    own = fit(context, "saeuron", [FISH], detection="saeuron-code").activations[0]
    folders = [folder_of(copied, name) for name in own.hookpoints]
    other = replace(own, saes=tuple(map(str, folders)), digests=tuple(map(sae_digest, folders)))
    rows = [Row(SUITE.request("neon", "fish", 1, 4), Erasure(activations=(edit,))) for edit in (own, other)]
    together = sample(model, rows, torch.float32, 4).latents
    alone = [sample(model, [row], torch.float32, 4).latents[0] for row in rows]
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])
    assert not torch.equal(alone[0], alone[1])

"""Every method of the project keeps its contract, and every way of breaking it is told by the right check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from commands import bench
from test_plugins import METHOD, installed, plugin, words

from bench.check import bibtex
from bench.check.outcome import Finding
from bench.check.run import CHECKS, check, failed, world_of
from bench.check.world import World
from bench.registry import method, methods

CHEATS = {
    name: f"{file}:{name}"
    for file in (Path(__file__).parent / "cheats.py", Path(__file__).parent / "cheating_edits.py")
    for name in re.findall(r"^class (\w+)\(", file.read_text(), re.MULTILINE)
}
"""Class → what `check` finds it by."""
__all__ = ["installed"]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of(full=False) as found:
        yield found


def of(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.check == name)


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_keeps_the_contract(name: str, world: World) -> None:
    findings = check(name, {}, world)
    assert failed(findings) == []
    status = {finding.check: finding.status for finding in findings}
    if status["fits"] == "skipped":
        pytest.skip(of(findings, "fits").text)
    assert {status[one] for one in ("samples", "neighbours", "labels", "saves", "precision")} == {"ok"}, "nothing is passed over"
    assert (status["continues"] == "ok") == method(name).continues()
    assert (status["row-wise"] == "ok") == method(name)().row_wise


def test_methods_with_detectors_act_on_the_tiny_model(world: World) -> None:
    findings = check("saeuron-detect", {}, world)
    assert {of(findings, one).status for one in ("acts", "quiet", "kinds")} == {"ok"}


@pytest.mark.parametrize("name", ["Honest", "Shifts"])
def test_an_honest_method_passes(name: str, world: World) -> None:
    findings = check(CHEATS[name], {}, world)
    assert failed(findings) == []
    assert len(findings) == len(CHECKS)


@pytest.mark.parametrize(
    ("cheat", "caught_by", "text", "mend"),
    [
        ("NoPaper", "card", "NoPaper.card has no paper", "Only a control"),
        ("KindTypo", "card", "KindTypo.card.supports is ('styles',)", "style, object"),
        ("OpenBrace", "bibtex", "OpenBrace.card.bibtex: the braces of", "@type{key"),
        ("NoYear", "bibtex", "doe2026 has no year", "Add what is missing"),
        ("Undescribed", "parameters", "UndescribedConfig.scale has no description", "description=…"),
        ("Demanding", "parameters", "DemandingConfig.scale: field required", "default"),
        ("PlainPath", "parameters", "FolderConfig.folder is of type", "Path | None"),
        ("Unpicklable", "pickles", "Local cannot be pickled", "at the top of a module"),
        ("WrongGrid", "tuning", "valid number", "WrongGrid.tuning"),
        ("TouchesModel", "model-after-fit", "unet.conv_in.weight", "Train copies"),
        ("TouchesCopy", "model-after-fit", "the UNet's copy in bfloat16: conv_out.weight", "Train copies"),
        ("OwnForward", "model-after-fit", "unet. (a forward of its own)", "Train copies"),
        ("EveryForward", "model-after-fit", "the method forward of UNet2DConditionModel", "Train copies"),
        ("LeavesTraining", "model-after-fit", "text_encoder. (training mode)", "Train copies"),
        ("Unseeded", "deterministic", "Two fits on style:neon with the same seed differ: fields of parts", "context.seed"),
        ("Reseeds", "model-after-fit", "fit() left changed: torch's global seed", "torch.Generator of your own"),
        ("Ignores", "several", "The erasures of style:neon and of object:fish are the same", "Let fit() use the `concepts`"),
        ("Narrow", "texts", "Wrong for style:neon: embeds are float32 [1, 24, 31], not float32 [V, 24, 32]", "replace(cond, embeds=…)"),
        ("Double", "texts", "embeds are float64 [1, 24, 32]", "back to float32"),
        ("Restless", "texts", "gives other states for the same texts when asked again", "from context.seed"),
        ("Averages", "texts", "other states beside other texts than alone", "no mean or sum over texts"),
        ("Infinite", "texts", "embeds are not finite", "division by zero"),
        ("Few", "texts", "gives 3 of Cond for 4 texts", "one Cond a text"),
        ("HiddenWeights", "weights", "changes weights (unet.conv_out.bias), but row_wise is True", "row_wise give False"),
        ("NoWeights", "weights", "leaves weights alone, but row_wise is False", "row_wise give True"),
        ("WrongName", "weights", 'no weight "unet.conv_out.bais"', "named_parameters"),
        ("MissingPart", "parts", "Faded, the text for a style, is not in MissingPart.parts", "parts = (Faded,)"),
        ("SilentExamples", "inputs", "trains on context.examples", "assets.examples"),
        ("OnlyFirst", "several", "style:neon and style:sketch at once give the erasure of one of them", "not the first"),
        ("Refuses", "fits", "The fit on style:neon is refused: I would rather not.", "card.supports"),
        ("Breaks", "fits", "ZeroDivisionError: division by zero (cheats.py, line", "Mend what raises this"),
        ("StandsStill", "continues", "gives the erasure of style:neon back", "Go on from `start`"),
        ("NoPart", "acts", "The erasure of style:neon changes nothing: it has no part", "only a control may do nothing"),
        ("BaseImages", "acts", "every picture with Faded is the unedited model's, bit for bit", "whether the part uses it"),
        ("KnowsTheNoise", "acts", "every picture with KnowingShift is the unedited model's, bit for bit", "whether the part uses it"),
        ("ReadsLabels", "labels", "the same prompts with other labels give other pictures", "texts that encode() is given"),
        ("TouchesWhileSampling", "model-after-sampling", "vae.decoder.conv_in.bias", "never write to it"),
        ("CannotBeSaved", "saves", "TypeError", "tensors, texts, numbers"),
        ("KeylessGuidance", "neighbours", "beside others, have other bits", "`key` of a Guidance"),
        ("LooksAtNeighbours", "neighbours", "have other bits", "from its own input"),
        ("EditsOthers", "row-wise", "other pictures have other bits (those with no edit, NegativeText", "which is −1"),
        ("QuietIsLoud", "quiet", "at mid_block.attentions.0, timestep 667, in 16 of 16 slots", "quiet_is_identity be False"),
        ("OnlyFloat32", "precision", "an edit must keep shape and dtype", "dtype of x_out"),
        ("InPlace", "acts", "change a block's output in place", "return a new tensor"),
    ],
)
def test_exactly_the_right_check_fails(cheat: str, caught_by: str, text: str, mend: str, world: World) -> None:
    wrong = failed(check(CHEATS[cheat], {}, world))
    assert [finding.check for finding in wrong] == [caught_by], wrong
    assert text in wrong[0].text
    assert mend in wrong[0].mend
    assert world.snapshot.differences() == [], "what a method leaves behind must not reach the next"


def test_a_method_that_needs_files_is_skipped_with_its_reason(world: World) -> None:
    findings = check(CHEATS["NeedsFile"], {}, world)
    assert failed(findings) == []
    assert of(findings, "fits") == Finding("fits", "skipped", "I would rather not. It may need files: check NeedsFile:file=PATH.")
    assert of(findings, "labels") == Finding("labels", "skipped", "It cannot be fitted.")
    given = check(CHEATS["NeedsFile"], {"file": "/nowhere"}, world)
    assert [finding.check for finding in failed(given)] == ["fits"]


@pytest.mark.parametrize("file", ["weights", "adapters", "spm", "erasers"])
def test_checkpoints_keep_the_contract(file: str, world: World, tmp_path: Path) -> None:
    for seed, name in enumerate(("neon", "sketch", "fish", "house")):
        torch.manual_seed(seed)
        write_checkpoint(file, world.model.unet, name, tmp_path / f"{name}.safetensors")
    findings = check("checkpoint", {"path": str(tmp_path / "{concept}.safetensors")}, world)
    assert failed(findings) == []
    status = {finding.check: finding.status for finding in findings}
    assert {status[one] for one in ("fits", "inputs", "acts", "samples", "neighbours", "labels", "saves", "precision")} == {"ok"}
    assert (status["row-wise"] == "ok") == (file != "weights")


def test_a_checkpoint_of_another_model_is_told_of_the_full_check(world: World, tmp_path: Path) -> None:
    torch.save({"conv_in.weight": torch.ones(7, 4, 3, 3)}, tmp_path / "wide.pt")
    finding = of(check("checkpoint", {"path": str(tmp_path / "wide.pt")}, world), "fits")
    assert finding.status == "failed"
    assert "check --full" in finding.mend


def test_the_command_tells_and_its_status_counts(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    (tmp_path / "mine.py").write_text(METHOD.read_text())
    good = bench("check", "reword", "mine.py:Reword:instead=house", cwd=tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "reword: 21 ok, 3 skipped, 0 failed" in words(good.stdout)
    assert "skipped quiet It has no edit that is quiet." in words(good.stdout)
    bad = bench("check", "reword", CHEATS["NoPart"], cwd=tmp_path)
    assert bad.returncode == 1
    assert "failed acts The erasure of style:neon changes nothing" in words(bad.stdout)
    assert "1 of 2 methods fail." in bad.stderr


def test_a_plugin_that_cannot_be_loaded_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path / "site", "raises = raises_when_imported:Method", raises_when_imported='raise RuntimeError("no GPU")')
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = bench("check", "raises", cwd=tmp_path)
    assert found.returncode == 1
    assert 'failed loads The method "raises" (raises_when_imported:Method of the package bad-plugin) cannot be loaded' in words(
        found.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["uec"], 'Unknown method "uec": did you mean "uce"?'),
        (["esd:iteration=3"], 'Unknown parameter of esd "iteration": did you mean "iterations"?'),
        (["esd:iterations=few"], 'esd.iterations = "few": input should be a valid integer'),
        (["mine.py"], "names no class"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = bench("check", *arguments, cwd=tmp_path)
    assert found.returncode == 2
    assert message in words(found.stderr)


@pytest.mark.slow
def test_every_method_keeps_the_contract_on_the_shipped_model() -> None:
    with world_of(full=True) as world:
        wrong = {name: failed(check(name, {}, world)) for name in methods()}
    assert not any(wrong.values()), wrong


def test_bibtex_is_read() -> None:
    text = '@Article{a-1,\n author = {A {\\"o} B},\n title = "A {T}itle", year=2026\n}\n@misc{b, note = {x},}\n'
    assert bibtex.parse(text) == [
        ("article", "a-1", {"author": 'A {\\"o} B', "title": "A {T}itle", "year": "2026"}),
        ("misc", "b", {"note": "x"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no beginning of an entry"),
        ("doe 2026", "no beginning of an entry"),
        ("@article{, title = {x}}", "no beginning of an entry"),
        ("@article{a, title = {x}", "braces of"),
        ("@article{a, title = {x}}}", "no beginning of an entry"),
        ("@article{a, title = {x {y}", "braces of"),
        ("@article{a, title = {x} year = {y}}", "no comma before"),
        ("@article{a, title = {x}, Title = {y}}", "title is there twice"),
        ("@article{a, title = }", "is no value"),
    ],
)
def test_what_is_no_bibtex(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bibtex.parse(text)

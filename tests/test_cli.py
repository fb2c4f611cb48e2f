"""The command line as a user meets it, in a folder of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import bench, contents, process

from bench.cli import main
from bench.store import read_records
from bench.suites.minicanvas import HOOKPOINTS
from bench.types import Record

FEW = ("run", "--preset", "smoke", "--batch-size", "4")
SMOKE = (*FEW, "--methods", "uce,esd,sld,negative-prompt", "--set", "esd.iterations=2", "--set", "esd.trajectories=2")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    found = process(*SMOKE, "--dtype", "float32", "--out", "run", cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "uce" in found.stdout
    assert (folder / "run" / "leaderboard.md").exists()
    return folder / "run"


def test_a_run_leaves_all_its_files(smoke: Path) -> None:
    for name in ("config.json", "plan.json", "leaderboard.csv", "leaderboard.md", "leaderboard.tex", "citations.bib", "grid.png"):
        assert (smoke / name).stat().st_size > 0, name
    table = pd.read_csv(smoke / "leaderboard.csv")
    assert len(table) >= 5
    records = [json.loads(path.read_text()) for path in (smoke / "records").glob("*.json")]
    assert {record["method"] for record in records} == {"none", "uce", "esd", "sld", "negative-prompt"}
    for record in records:
        assert record["cost"]["seconds_per_image"] > 0
        assert record["numerics"]["dtype"] == "float32"
    assert not list(smoke.rglob("*.tmp"))


def test_the_same_command_continues_to_the_same_bytes(smoke: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke, copy)
    lost = sorted((copy / "units").glob("*/*"))[:2]
    lost[0].unlink()
    lost[1].write_bytes(lost[1].read_bytes()[:-7])
    for path in (copy / "records").iterdir():
        path.unlink()
    found = bench(*SMOKE, "--dtype", "float32", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "are there already" in found.stderr
    patterns = ("units/*/*", "records/*", "leaderboard.*", "*.csv", "citations.bib", "grid.png")
    assert contents(copy, *patterns) == contents(smoke, *patterns)


def test_report_makes_the_same_tables(smoke: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke, copy)
    before = contents(copy, "leaderboard.*", "*.csv", "citations.bib", "grid.png")
    for name in before:
        (copy / name).unlink()
    assert bench("report", "run", cwd=tmp_path).returncode == 0
    assert contents(copy, "leaderboard.*", "*.csv", "citations.bib", "grid.png") == before


def test_rows_of_several_runs_make_one_table(smoke: Path, tmp_path: Path) -> None:
    """A leaderboard grows by runs: the tables are those of one run that had all rows."""
    for name, left_out in (("first", "uce.json"), ("second", "none.json")):
        shutil.copytree(smoke / "records", tmp_path / name / "records")
        (tmp_path / name / "records" / left_out).unlink()
    found = bench("report", "first", str(smoke), "--to", "first", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    tables = ("leaderboard.*", "*.csv", "citations.bib", "records/*")
    assert contents(tmp_path / "first", *tables) == contents(smoke, *tables)
    assert bench("report", "first", "second", "--to", "both", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "both", *tables) == contents(smoke, *tables)

    record = tmp_path / "second" / "records" / "uce.json"
    changed = Record.from_json(record.read_bytes())
    changed.outcomes["style_pred"][0] = None
    record.write_text(changed.to_json())
    for arguments, sentence in (
        (("first", "second", "--to", "x"), 'both have a row "uce", and they differ'),
        (("first", "second"), "--to FOLDER says where"),
        (("first", "nowhere", "--to", "x"), "nowhere has no records"),
    ):
        found = bench("report", *arguments, cwd=tmp_path)
        assert found.returncode == 2, found.stderr
        assert sentence in " ".join(found.stderr.split())
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_killed_run_is_finished_by_the_same_command(smoke: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", *SMOKE, "--dtype", "float32", "--out", "run"]
    killed = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    units = tmp_path / "run" / "units"
    while killed.poll() is None and not list(units.glob("*/*.parquet")):
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "run" / "leaderboard.csv").exists()
    (tmp_path / "run" / ".config.json.x.tmp").write_text("cut off")
    assert bench(*command[3:], cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "run", "units/*/*.parquet") == contents(smoke, "units/*/*.parquet"), "what the kill cut off is no unit"
    found = bench("verify", "run", "--clean", cwd=tmp_path)
    assert found.returncode == 0, found.stdout
    assert "temporary files removed" in found.stdout
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_one_folder_holds_one_design(smoke: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke, copy)
    before = contents(copy, "**/*.*")
    found = bench(*SMOKE, "--seeds", "2", "--out", "run", cwd=tmp_path)
    assert found.returncode == 2
    assert "holds a run with other seeds" in found.stderr
    assert contents(copy, "**/*.*") == before
    found = bench(*FEW, "--methods", "uce", "--set", "uce.tokens=aligned", "--images", "all", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "uce:tokens=aligned" in found.stdout
    assert {path.name for path in (copy / "records").iterdir()} == {"none.json", "uce_tokens=aligned.json"}
    frames = [pd.read_parquet(path) for path in (copy / "units").glob("*/*") if path.name.split(".")[0] in (copy / "plan.json").read_text()]
    assert all(frame["picture"].notna().all() for frame in frames)
    kept = json.loads((copy / "config.json").read_text())["numerics"]["dtype"]
    assert kept == "float32", "a continued run keeps its numerics"
    (copy / "records" / "none.json").write_bytes((smoke / "records" / "none.json").read_bytes())
    found = bench("report", "run", cwd=tmp_path)
    assert found.returncode == 2
    assert "different plans" in found.stderr


def test_two_rows_are_compared(smoke: Path) -> None:
    found = bench("compare", str(smoke), "uce", "none", cwd=smoke)
    assert found.returncode == 0, found.stderr
    assert "uce − none" in found.stdout
    wrong = bench("compare", str(smoke), "uce", "ucd", cwd=smoke)
    assert wrong.returncode == 2
    assert 'did you mean "uce"' in wrong.stderr
    wrong = bench("matched", str(smoke), "--method", "uce", "--by", "tokens", cwd=smoke)
    assert wrong.returncode == 2
    assert "the untuned rows of uce in this run have aligned" in " ".join(wrong.stderr.split())
    wrong = bench("matched", str(smoke), "--method", "uce", "--by", "token", cwd=smoke)
    assert 'did you mean "tokens"' in wrong.stderr


def test_a_target_that_a_method_cannot_remove_is_a_hole_with_its_reason(tmp_path: Path) -> None:
    styles = "+".join(("photo", "neon", "blueprint", "mosaic", "sketch", "sunset", "halftone", "stripes", "frost", "pop"))
    found = bench(*FEW, "--methods", "uce,negative-prompt", "--concepts", styles, "--steps", "1", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "found no text to retain" in " ".join(found.stdout.split())
    record = Record.from_json((tmp_path / "run" / "records" / "uce.json").read_bytes())
    assert list(record.missing.values()) == ["UCE found no text to retain: erase fewer concepts at once."]
    assert not record.outcomes["seed"]


def test_sae_methods_tell_how_often_they_act_and_leave_styles_to_others(tmp_path: Path) -> None:
    methods = "saeuron-detect,saeuron:error=none"
    found = bench(*FEW, "--methods", methods, "--concepts", "fish,neon", "--tuning", "untuned", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    by_label = {record.label: record for record in read_records(tmp_path / "run")}
    assert by_label.keys() == {"none", "saeuron-detect (untuned)", "saeuron:error=none (untuned)"}
    detect, steer = by_label["saeuron-detect (untuned)"], by_label["saeuron:error=none (untuned)"]
    assert set(steer.inputs["style:neon"]) >= set(HOOKPOINTS["style"])
    assert "pictures that do not show the target" in " ".join(found.stdout.split())
    assert "does not support concepts of kind style" in detect.missing["style:neon"]
    acted = pd.DataFrame(detect.outcomes).query("object == 'fish'")["first_edit"] >= 0
    assert acted.mean() > 0.5
    assert set(steer.outcomes["target"]) == {"object:fish", "style:neon"}
    assert None not in steer.outcomes["first_edit"]
    assert "error=none" in " ".join(found.stdout.split())
    assert steer.config["error"] == "none"
    assert set(by_label["none"].outcomes["first_edit"]) == {None}


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("config.json", "[1]", SMOKE),
        ("config.json", "{}", ("report",)),
        ("config.json", '{"suite": "mini', ("report",)),
        ("plan.json", '{"a": 1}', ("report",)),
        ("records/uce.json", "[]", ("report",)),
        ("cost/sampling", "{}", SMOKE),
        ("cost/fit", "{}", SMOKE),
    ],
)
def test_damaged_files_are_named(name: str, text: str, command: tuple[str, ...], smoke: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke, tmp_path / "run")
    path = next(path for path in sorted((tmp_path / "run").rglob("*.json")) if str(path.relative_to(tmp_path / "run")).startswith(name))
    path.write_text(text)
    arguments = (*command, "run") if command == ("report",) else (*command, "--dtype", "float32", "--out", "run")
    found = bench(*arguments, cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert path.name in found.stderr
    assert "Traceback" not in found.stderr


def test_help_list_and_report_import_no_more_than_they_need(smoke: Path, tmp_path: Path) -> None:
    listed = (["list", "methods"], ["list", "suites"], ["list", "attacks"], ["show", "minicanvas"])
    for arguments in (["--help"], ["run", "--help"], ["check", "--help"], *listed, ["report", str(smoke)]):
        heavy = {"torch", *(["pandas"] if "--help" in arguments else [])}
        code = (
            "import sys; sys.argv = ['bench', *sys.argv[1:]]\n"
            "from bench.cli import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            f"assert not sys.modules.keys() & {heavy}"
        )
        found = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert found.returncode == 0, (arguments, found.stderr)


def test_list_and_show(tmp_path: Path) -> None:
    listed = bench("list", "methods", cwd=tmp_path).stdout
    assert all(name in listed for name in ("none", "uce", "esd", "sld", "negative-prompt"))
    shown = bench("show", "esd", cwd=tmp_path).stdout
    assert "train_method" in shown
    assert "2303.07345" in shown
    assert "neon" in bench("show", "minicanvas", cwd=tmp_path).stdout


def test_plan_writes_nothing(tmp_path: Path) -> None:
    found = bench("plan", "--preset", "smoke", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "in all" in found.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "minicanva"], 'did you mean "minicanvas"'),
        (["run", "--methods", "uec"], 'did you mean "uce"'),
        (["run", "--concepts", "nein"], 'did you mean "neon"'),
        (["run", "--preset", "quik"], 'did you mean "quick"'),
        (["run", "--methods", "uce", "--set", "uce.token=last"], 'did you mean "tokens"'),
        (["run", "--methods", "uce", "--set", "uce.erase_scale=much"], "valid number"),
        (["run", "--methods", "uce", "--set", "esd.iterations=3"], "method in --set"),
        (["run", "--methods", "uce", "--set", "uce.erase_scale=inf"], "finite number"),
        (["run", "--methods", "[/x]"], 'Unknown method "[/x]"'),
        (["run", "--methods", ""], "names no method"),
        (["run", "--methods", "saeuron:error"], "not of the form method:param=value"),
        (["run", "--methods", "saeuron:percentile=100"], "less than 100"),
        (["run", "--methods", "saeuron", "--set", "saeuron.sae=nowhere"], "holds no SAE"),
        (["train-sae", "--part", "train,calibrate"], 'did you mean "calibration"'),
        (["train-sae", "--set", "k:3"], "not of the form param=value"),
        (["run", "--concepts", ""], "names no concept"),
        (["run", "--concepts", "neon+"], "is not understood"),
        (["run", "--concepts", "styles+fish"], "is not understood"),
        (["run", "--concepts", "NEON"], 'did you mean "neon"'),
        (["run", "--steps", "0"], "--steps"),
        (["run", "--steps", "5000"], "--steps"),
        (["run", "--device", "tpu"], "--device"),
        (["run", "--device", "meta"], "--device"),
        (["run", "--images", "some"], "--images"),
        (["run", "--out", "/proc/nowhere"], "cannot be written"),
        (["report", "nowhere"], "nowhere has no records"),
        (["show", "esdd"], 'did you mean "esd"'),
        (["build", "imagenet"], "suite to build"),
        (["tune", "uec", "--out", "x.toml"], 'did you mean "uce"'),
        (["tune", "uce", "--concepts", "neon+fish", "--out", "x.toml"], "tuned one at a time"),
        (["tune", "uce", "--settings", "1", "--out", "x.toml"], "--settings"),
        (["run", "--preset", "smoke", "--scheduler", "eular"], 'did you mean "euler"'),
        (["run", "--batch-size", "0"], "--batch-size"),
        (["numerics", "bfloat61", "float32"], 'did you mean "bfloat16"'),
        (["build", "--part", "vae"], "Unknown part"),
        (["build", "--part", "check"], "model_index.json"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: a new one each would import torch each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing half-written"

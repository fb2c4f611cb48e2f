"""What was published of a run is made again from its records, checked byte for byte, and written into a README."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from commands import bench

from bench.api import load_leaderboard
from bench.errors import BenchError
from bench.files import sealed_json, unsealed
from bench.store import Store, read_records
from bench.suites.minicanvas import SUITE
from bench.tables import alike
from bench.types import Card, Record

PROTOCOL = SUITE.protocol("quick", SUITE.presets["quick"])
SHIPPED = Path(__file__).parents[1] / "results" / "leaderboards"


def made_up(method: str, targets: tuple[str, ...], erased: bool) -> Record:
    cells = [(target, style, obj, seed) for target in targets for style in ("neon", "pop") for obj in ("fish", "key") for seed in (1, 2)]
    gone = [erased and target == f"style:{style}" for target, style, _, _ in cells]
    return Record(
        method=method, label=method, version=1, config={}, card=Card(method, "", "", ("style",), control=method == "none"),
        protocol=PROTOCOL, numerics={}, cost={}, outcomes={
            "target": [cell[0] for cell in cells], "style": [cell[1] for cell in cells], "object": [cell[2] for cell in cells],
            "seed": [cell[3] for cell in cells], "object_pred": [cell[2] for cell in cells],
            "style_pred": ["photo" if lost else cell[1] for cell, lost in zip(cells, gone, strict=True)],
        },
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Published records of two methods."""
    targets = ("style:neon", "style:pop")
    Store(tmp_path / "found").write_records([made_up("none", ("",), False), made_up("mine", targets, True), made_up("nil", targets, False)])
    return tmp_path / "found"


def test_tables_are_made_of_records_and_checked(folder: Path) -> None:
    assert bench("report", "found", "--check", cwd=folder.parent).returncode == 1
    done = bench("report", "found", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} >= {"leaderboard.md", "leaderboard.json", "differences.csv", "report.html"}
    assert bench("report", "found", "--check", cwd=folder.parent).returncode == 0
    (folder / "leaderboard.tex").write_text((folder / "leaderboard.tex").read_text().replace("100.0", "99.0"))
    done = bench("report", "found", "--check", cwd=folder.parent)
    assert done.returncode == 1
    assert "leaderboard.tex is not what its records make" in done.stdout


@pytest.mark.parametrize("name", ["matched-saeuron-detection.csv", "published.csv"])
def test_tables_that_no_record_makes_are_told(name: str, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "minicanvas-matched", tmp_path / "found")
    with (tmp_path / "found" / name).open("a") as file:
        file.write("nonsense,1\n")
    done = bench("report", "found", "--check", cwd=tmp_path)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == [f"found/{name}"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a,0.12345678901234567,x", "a,0.12345678901234561,x", True),
        ("a,1e-17,x", "a,0.0,x", True),
        ("a,0.1234567,x", "a,0.1234568,x", False),
        ("a,0.5,x", "b,0.5,x", False),
        ("a,0.5,1", "a,0.5,2", False),
        ("a97fa83824.5e", "a97fa83824.6e", False),
        ("a,0.5,0.5", "a,0.5", False),
        ("12e-20", "12e-21", True),
        ("7\n", "7.0\n", False),
    ],
)
def test_only_the_last_digits_of_fractions_may_differ(one: str, other: str, same: bool) -> None:
    """Processors add up in another order, so that tables made on one are held against those of another."""
    assert alike(one.encode(), other.encode()) is same


def test_a_record_edited_by_hand_is_refused_with_its_name(folder: Path) -> None:
    path = folder / "records" / "mine.json"
    path.write_text(path.read_text().replace('"photo"', '"neon"', 1))
    done = bench("report", "found", cwd=folder.parent)
    assert done.returncode == 2
    assert "records/mine.json is not a record" in " ".join(done.stderr.split())


def test_protocols_are_not_ranked_together(folder: Path) -> None:
    path = folder / "records" / "nil.json"
    body = unsealed(path.read_bytes())
    path.write_bytes(sealed_json({**body, "protocol": PROTOCOL.replace("-v1", "-v2")}))
    done = bench("report", "found", cwd=folder.parent)
    assert done.returncode == 2
    assert "different protocols" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("none", {"protocol": PROTOCOL.replace("20-steps", "10-steps")}, "10-steps: make one table for each"),
        ("none", {"style_pred": ["photo"] * 8}, "judged otherwise in found than in more"),
        ("other", {"protocol": PROTOCOL.replace("20-steps", "10-steps")}, "different protocols"),
        ("other", {"provenance": {"judges": {"evaluation": "b"}}}, "are of different networks for evaluation"),
        ("other", {"provenance": {"model": "b"}}, "are of different models"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(folder: Path, name: str, change: dict, sentence: str) -> None:
    """Nor dropped without a word, as the second run's unedited model might be."""
    store = Store(folder.parent / "more")
    store.write_records([made_up("none", ("",), False), made_up("other", ("style:neon", "style:pop"), True)])
    for path in (*folder.glob("records/*.json"), *store.folder.glob("records/*.json")):
        body = unsealed(path.read_bytes()) | {"provenance": {"model": "a", "judges": {"evaluation": "a"}}}
        if path.parent.parent == store.folder and path.stem == name:
            body |= {key: value for key, value in change.items() if key in body}
            body["outcomes"] |= {key: value for key, value in change.items() if key in body["outcomes"]}
        path.write_bytes(sealed_json(body))
    done = bench("report", "found", "more", "--to", "both", cwd=folder.parent)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())


def test_a_row_that_was_attacked_later_takes_the_place_of_its_own(tmp_path: Path) -> None:
    attacked = [record for record in read_records(SHIPPED / "minicanvas-attacks") if record.label in ("none", "uce")]
    Store(tmp_path / "attacked").write_records(attacked)
    Store(tmp_path / "bare").write_records([replace(record, attacks={}) for record in attacked])
    for order in (("bare", "attacked"), ("attacked", "bare")):
        done = bench("report", *order, "--to", "both", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert set(pd.read_csv(tmp_path / "both" / "attacks.csv")["label"]) == {"none", "uce"}


def test_costs_of_another_run_take_the_place_of_a_rows_own(folder: Path) -> None:
    few = [made_up("none", ("",), False), made_up("mine", ("style:pop",), True), made_up("nil", ("style:pop",), False)]
    Store(folder.parent / "small").write_records(
        [replace(own, cost={"fits": 1, "fit_seconds": 2.5}, numerics={"threads": 2}) for own in few]
    )
    done = bench("report", "found", "--costs", "small", "--to", "both", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    found = {record.label: record for record in read_records(folder.parent / "both")}
    assert found["mine"].cost["fit_seconds"] == 2.5
    assert found["mine"].outcomes == {record.label: record for record in read_records(folder)}["mine"].outcomes
    text = (folder.parent / "both" / "leaderboard.md").read_text()
    assert ": costs are of 1 of 2 fits." in text
    assert f"Costs are of a run of their own: {PROTOCOL}, 2 threads." in text
    assert bench("report", "found", "--costs", "small", "--to", "both", "--check", cwd=folder.parent).returncode == 0
    in_place = bench("report", "found", "--costs", "small", "--to", "found", cwd=folder.parent)
    assert in_place.returncode == 0, in_place.stderr
    assert read_records(folder) == read_records(folder.parent / "both")
    again = bench("report", "found", "--costs", "both", "--to", "found", cwd=folder.parent)
    assert again.returncode == 0, again.stderr
    assert read_records(folder) == read_records(folder.parent / "both")  # that they are of `small` is still told
    assert bench("report", "found", "--check", cwd=folder.parent).returncode == 0


def test_what_fits_share_is_told_with_all_rows_of_the_method(folder: Path) -> None:
    none, mine, nil = (next(own for own in read_records(folder) if own.label == label) for label in ("none", "mine", "nil"))
    again = replace(mine, label="mine (untuned)", config={"strength": 2}, cost={"fits": 2, "shared_seconds": 1.5})
    costs = {"fits": 2, "shared_seconds": 24.5}
    same = replace(mine, label="mine (again)", cost=costs)
    Store(folder.parent / "paid").write_records([none, replace(mine, cost=costs), again, same, replace(nil, cost={"fits": 2})])
    done = bench("report", "paid", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    footnotes = json.loads((folder.parent / "paid" / "leaderboard.json").read_text())["footnotes"]
    told = [note for note in footnotes if "fits share" in note]
    assert told == ["mine, mine (again), mine (untuned): fit times are without 26 s for what fits share."]


@pytest.mark.parametrize(
    "change", [{"config": {"strength": 2}}, {"version": 2}, {"label": "yours"}, {"tuning": {"configs": {"style:pop": {"strength": 2}}}}]
)
def test_costs_of_other_parameters_are_refused(folder: Path, change: dict) -> None:
    tuning = {"budget": {}, "configs": {"style:pop": {"strength": 1}}}
    tuned = [replace(own, config={"strength": 0}, cost={"fits": 1}, tuning=tuning) for own in read_records(folder)]
    Store(folder).write_records(tuned)
    Store(folder.parent / "small").write_records([replace(own, **change) if own.label == "mine" else own for own in tuned])
    done = bench("report", "found", "--costs", "small", "--to", "both", cwd=folder.parent)
    assert done.returncode == 2
    assert ("small has no costs of mine" if "label" in change else "small has mine with other versions") in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": PROTOCOL.replace("20-steps", "4-steps")}, "the same model, suite and --steps"),
        ({"provenance": {"model": "b"}}, "the same model, suite and --steps"),
        ({"numerics": {"device": "cuda"}}, '"mine" with device cuda, not None'),
        ({"cost": {}}, "has no costs of mine, nil, none"),
    ],
)
def test_costs_of_other_work_are_refused(folder: Path, change: dict, sentence: str) -> None:
    """A picture of fewer steps, or on another machine, would look cheap."""
    Store(folder.parent / "small").write_records([replace(own, **{"cost": {"fits": 2}, **change}) for own in read_records(folder)])
    done = bench("report", "found", "--costs", "small", "--to", "both", cwd=folder.parent)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
    assert not (folder.parent / "both").exists()


def test_edited_records_give_no_frame(folder: Path) -> None:
    bench("report", "found", cwd=folder.parent)
    assert set(load_leaderboard(folder)["label"]) == {"none", "mine", "nil"}
    path = folder / "records" / "mine.json"
    path.write_text(path.read_text().replace('"photo"', '"neon"', 1))
    with pytest.raises(BenchError, match=r"records/mine.json is not a record"):
        load_leaderboard(folder)


def test_a_readme_gets_its_table(folder: Path) -> None:
    readme = folder.parent / "README.md"
    readme.write_text("before\n<!-- table found -->\nold\n<!-- /table -->\nafter\n")
    done = bench("report", "found", "--into", "README.md", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith("before\n<!-- table found -->")
    assert text.endswith("<!-- /table -->\nafter\n")
    assert "| mine |" in text
    assert "old" not in text
    assert bench("report", "found", "--into", "README.md", "--check", cwd=folder.parent).returncode == 0
    readme.write_text(text.replace("mine", "yours"))
    assert bench("report", "found", "--into", "README.md", "--check", cwd=folder.parent).returncode == 1
    readme.write_text("no marks")
    assert "put both where the tables shall stand" in " ".join(
        bench("report", "found", "--into", "README.md", cwd=folder.parent).stderr.split()
    )


def test_rows_compare_and_figures_are_drawn_without_a_run(folder: Path) -> None:
    done = bench("compare", "found", "mine", "nil", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    (ua,) = [line.split() for line in done.stdout.splitlines() if line.split()[:2] == ["style", "UA"]]
    assert ua[2:5] == ["100.0", "0.0", "+100.0"]
    assert ua[-1] == "yes"
    done = bench("plot", "found", "--format", "svg", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert (folder / "figures" / "tradeoff.svg").is_file()


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.iterdir()) if SHIPPED.is_dir() else [])
def test_what_is_shipped_is_what_its_records_make(name: str) -> None:
    readme = ("--into", "README.md") if name == "minicanvas-sae" else ()
    done = bench("report", f"results/leaderboards/{name}", *readme, "--check", cwd=SHIPPED.parents[1])
    assert done.returncode == 0, done.stdout
    assert json.loads((SHIPPED / name / "leaderboard.json").read_text())["invalid"] is None

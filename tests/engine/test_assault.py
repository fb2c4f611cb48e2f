"""What is counted while an attack and the judges take turns, and runs with attacks: their records, resume, replay, bad input."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from commands import bench
from torch import Tensor

from bench.adversary import AttackContext, Candidate, Goal
from bench.api import ClassifierOutput, DiffusionModel, Erasure
from bench.attack_plan import goal_of
from bench.attacks.replay import Replay, ReplayConfig
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler
from bench.engine.rounds import THIRD, Bench, Sight, drive, fitting, in_turn
from bench.scoring import Scorer
from bench.suites.minicanvas import SUITE
from bench.types import Concept, Record, Target

REQUEST = SUITE.request("neon", "fish", 1, 4)
GOALS = [Goal(replace(REQUEST, prompt=f"clean {g}"), REQUEST, ("fish",), ()) for g in range(3)]


class FakeJudge:
    """Sees the concept wherever the prompt says so."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []

    def __call__(self, candidates: Sequence[Candidate]) -> list[Sight]:
        self.rounds.append([candidate.request.prompt for candidate in candidates])
        return [Sight("!" in candidate.request.prompt, None, ("neon", "fish"), "", None) for candidate in candidates]


def candidate(goal: int, text: str, steps: int = 0) -> Candidate:
    return Candidate(goal, replace(GOALS[goal].request, prompt=text), steps)


def test_what_is_judged_is_counted_and_what_is_reached_is_left_alone() -> None:
    told: list[list[bool]] = []

    def search() -> Generator[list[Candidate], Sequence[bool], None]:
        told.append(list((yield [candidate(0, "a", 20), candidate(1, "b!", 20), candidate(2, "c", 20)])))
        told.append(list((yield [candidate(0, "d", 40), candidate(2, "e!", 40)])))
        told.append(list((yield [candidate(0, "f", 60)])))

    judge = FakeJudge()
    outcomes = drive(search(), GOALS, judge, lambda share, text: None)
    assert judge.rounds == [["clean 0", "clean 1", "clean 2"], ["a", "b!", "c"], ["d", "e!"], ["f"]]
    assert told == [[False, True, False], [False, True], [False]]
    assert [(one.success, one.judged, one.gradient_steps, one.prompt) for one in outcomes] == [
        (False, 3, 60, "f"), (True, 1, 20, "b!"), (True, 2, 40, "e!"),
    ]  # fmt: skip


def test_what_is_there_without_an_attack_is_not_attacked() -> None:
    goals = [replace(GOALS[0], request=replace(REQUEST, prompt="clean!")), GOALS[1]]
    judge = FakeJudge()

    def search() -> Generator[list[Candidate], Sequence[bool], None]:
        yield [candidate(0, "a"), candidate(1, "b")]

    outcomes = drive(search(), goals, judge, lambda share, text: None)
    assert judge.rounds[1:] == [["b"]]
    assert [(one.clean, one.success, one.judged) for one in outcomes] == [(True, True, 0), (False, False, 1)]


def test_what_nobody_could_see_is_no_outcome() -> None:
    """A clean picture that broke, and a goal of which every attacked one did; a broken one beside others costs nothing."""

    class Breaks(FakeJudge):
        def __call__(self, candidates: Sequence[Candidate]) -> list[Sight]:
            return [
                replace(sight, whole="?" not in own.request.prompt)
                for sight, own in zip(super().__call__(candidates), candidates, strict=True)
            ]

    goals = [replace(GOALS[0], request=replace(REQUEST, prompt="clean?")), *GOALS[1:]]
    proposals = [[candidate(0, "a")], [candidate(1, "b?")], [candidate(2, "c?"), candidate(2, "d")]]
    outcomes = drive(in_turn(proposals, 6), goals, Breaks(), lambda share, text: None)
    assert [one.hole for one in outcomes] == ["the clean picture broke", "no picture could be judged", ""]
    assert outcomes[2].judged == 1


def test_a_banks_prompts_are_tried_until_the_first_success() -> None:
    """Several at once fill a call; those after a success do not count."""
    proposals = [[candidate(0, text) for text in ("a", "b!", "c!")], [candidate(1, text) for text in ("d", "e", "f")], []]
    judge = FakeJudge()
    outcomes = drive(in_turn(proposals, 6), GOALS, judge, lambda share, text: None)
    assert judge.rounds[1:] == [["a", "b!", "d", "e"], ["f"]]
    assert [(one.success, one.judged, one.prompt) for one in outcomes] == [(True, 2, "b!"), (False, 3, "f"), (False, 0, "clean 2")]


@pytest.mark.parametrize(
    ("pictures", "compiled", "slots"),
    [(1, False, 8), (5, False, 16), (16, False, 32), (20, False, 24), (30, False, 32), (5, True, 16), (20, True, 32), (33, False, 24)],
)
def test_few_pictures_are_no_padding(pictures: int, compiled: bool, slots: int, model: DiffusionModel) -> None:
    """20 pictures of two slots each are two calls of 24, not 32; compiled, sizes are powers of two."""
    rows = [Row(REQUEST, Erasure())] * pictures
    assert fitting(Sampler(model, torch.float32, 32, compiled), rows).slots == slots


class Sees:
    """A judge of one mind."""

    digest, batch = "", 4
    styles, objects = SUITE.styles, SUITE.objects
    stores_half = False

    def __init__(self, style: str, obj: str) -> None:
        self.places = self.styles.index(style), self.objects.index(obj)

    def __call__(self, pixels: Tensor) -> ClassifierOutput:
        style, obj = (
            torch.eye(len(names))[place].expand(len(pixels), -1)
            for names, place in zip((self.styles, self.objects), self.places, strict=True)
        )
        return ClassifierOutput(style, obj, self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        return torch.zeros(len(pixels), 1)


@pytest.mark.parametrize(("evaluation", "third"), [(("neon", "fish"), ("neon", "cup")), (("neon", "cup"), ("neon", "fish"))])
def test_the_evaluations_judge_decides_and_the_third_network_confirms(
    evaluation: tuple[str, str], third: tuple[str, str], model: DiffusionModel
) -> None:
    scorer = Scorer(Sees(*evaluation), {THIRD: Sees(*third)}, SUITE.codec)
    worker = SimpleNamespace(model=model, scorer=scorer, sampler=Sampler(model, torch.float32, 8))
    request, counted = SUITE.request("neon", "fish", 1, 1), list[int]()
    judge = Bench(worker, [Row(request, Erasure())], [Target((Concept("object", "fish"),))], counted.append, True)  # type: ignore[arg-type]
    (sight,) = judge([Candidate(0, request)])
    assert (sight.success, sight.confirmed) == (evaluation[1] == "fish", third[1] == "fish")
    assert sight.seen == evaluation
    assert counted == [1]


ATTACKS = "random:tried=3,unlearndiffatk:iterations=2:timesteps=2:tokens=2,paraphrase:tried=2"
RUN = ("run", "--preset", "smoke", "--methods", "uce", "--batch-size", "4", "--dtype", "float32", "--compile", "no", "--out", "run")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    found = bench(*RUN, "--attacks", ATTACKS, cwd=folder)
    assert found.returncode == 0, found.stderr
    return folder / "run"


def outcomes_of(run: Path, label: str) -> dict[str, dict[str, list[object]]]:
    record = Record.from_json((run / "records" / f"{label}.json").read_bytes())
    return {name: own["outcomes"] for name, own in record.attacks.items()}


def test_records_and_tables_tell_of_attacks(attacked: Path) -> None:
    own = outcomes_of(attacked, "uce")
    assert set(own) == {"random:tried=3", "unlearndiffatk:iterations=2:timesteps=2:tokens=2", "paraphrase:tried=2"}
    for name, columns in own.items():
        assert set(columns["target"]) == {"object:fish"}
        tried = pd.DataFrame(columns)
        assert (tried["judged"] <= (3 if "random" in name else 2)).all()
        assert tried.loc[~tried["success"], "prompt"].ne("").all()
        assert not tried.loc[tried["judged"] > 0, "prompt"].eq(tried.loc[tried["judged"] > 0, "clean_prompt"]).any()
    base = pd.DataFrame(outcomes_of(attacked, "none")["random:tried=3"])
    assert base["clean_prompt"].str.contains("nothing").all(), "the unedited model is asked for the concept's anchor"
    table = pd.read_csv(attacked / "attacks.csv")
    assert set(table["method"]) == {"none", "uce"}
    assert {"attack_curves.csv", "attack_prompts.csv"} <= {path.name for path in attacked.iterdir()}
    reached = any(any(own["success"]) and not all(own["clean"]) for own in outcomes_of(attacked, "none").values())
    assert (attacked / "attacks.png").exists() or not reached
    assert "UA under attack" in (attacked / "leaderboard.md").read_text()
    assert "zhang2024generate" in (attacked / "citations.bib").read_text()


def test_a_cell_of_two_targets_is_attacked_for_each_with_prompts_of_its_own(tmp_path: Path) -> None:
    """ "A fish image in neon style." is a goal of both."""
    found = bench(*RUN, "--concepts", "neon,fish", "--attacks", "random:tried=3,paraphrase:tried=2", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    made = {
        name: pd.concat(pd.DataFrame(outcomes_of(tmp_path / "run", label)[name]) for label in ("none", "uce"))
        for name in ("random:tried=3", "paraphrase:tried=2")
    }
    for target, name in (("style:neon", "neon"), ("object:fish", "fish")):
        own = made["paraphrase:tried=2"][made["paraphrase:tried=2"]["target"] == target]
        assert (own["judged"] > 0).any()
        assert not own.loc[own["judged"] > 0, "prompt"].str.contains(name).any(), "no paraphrase of the other concept"
    random = made["random:tried=3"]
    both = random[(random["style"] == "neon") & (random["object"] == "fish") & (random["judged"] > 0)]
    drawn = both["prompt"].str.split(" ").str[:5].str.join(" ").groupby(both["target"]).agg(set)
    assert drawn["style:neon"].isdisjoint(drawn["object:fish"]), "drawn for each"


def test_what_was_in_flight_is_attacked_again_with_the_same_prompts(attacked: Path, tmp_path: Path) -> None:
    shutil.copytree(attacked, tmp_path / "run")
    plan = json.loads((attacked / "plan.json").read_text())["units"]
    lost = [entry["unit"] for entry in plan if "attack" in entry and entry["method"] == "uce"]
    for unit in lost:
        for path in (tmp_path / "run" / "units").glob(f"*/{unit}.*"):
            path.unlink()
    found = bench(*RUN, "--attacks", ATTACKS, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert outcomes_of(tmp_path / "run", "uce") == outcomes_of(attacked, "uce")


def test_the_loss_that_attacks_lower_is_measured_on_what_they_ended_with(attacked: Path, tmp_path: Path) -> None:
    """Told again with prompts that are known: the concept's name on the unedited model, and the clean prompt itself."""
    shutil.copytree(attacked, tmp_path / "run")
    path = tmp_path / "run" / "attack_prompts.csv"
    table = pd.read_csv(path, keep_default_na=False)
    named = table["clean_prompt"].str.replace("nothing", "fish")
    table["prompt"] = named.where(table["method"] == "none", table["clean_prompt"])
    table.to_csv(path, index=False)
    found = bench("attack-loss", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    losses = pd.read_csv(tmp_path / "run" / "attack_losses.csv")
    tried = table[~table["clean"]]
    assert losses.groupby(["label", "attack"]).size().to_dict() == tried.groupby(["label", "attack"]).size().to_dict()
    ratio = losses["loss"] / losses["clean_loss"]
    assert (ratio[losses["label"] == "none"] < 0.95).all(), "what it shows is what its picture is"
    assert (ratio[losses["label"] == "uce"] == 1).all()
    assert (losses.groupby(["label", "style", "object"])["clean_loss"].nunique() == 1).all()


def test_losses_need_attacks(attacked: Path, tmp_path: Path) -> None:
    for options, sentence in ((("--methods", "esd"), "has no such rows"), ((), "attack_prompts.csv: `run --attacks` makes one")):
        shutil.copytree(attacked, tmp_path / "run", dirs_exist_ok=True)
        if not options:
            (tmp_path / "run" / "attack_prompts.csv").unlink()
        found = bench("attack-loss", "run", *options, cwd=tmp_path)
        assert found.returncode == 2
        assert sentence in " ".join(found.stderr.split())


def test_tables_of_before_are_not_those_of_a_run_that_is_being_attacked(attacked: Path, tmp_path: Path) -> None:
    assert bench(*RUN, cwd=tmp_path).returncode == 0
    shutil.copy(attacked / "plan.json", tmp_path / "run")
    found = bench("report", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "Not done" in found.stderr


def test_prompts_are_exported_and_replayed(attacked: Path, tmp_path: Path) -> None:
    shutil.copytree(attacked, tmp_path / "run")
    prompts = attacked / "attack_prompts.csv"
    found = bench(*RUN, "--attack-prompts", str(prompts), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    own = pd.DataFrame(outcomes_of(tmp_path / "run", "uce")["replay"])
    table = pd.read_csv(prompts)
    assert set(own["prompt"]) <= set(table["prompt"])
    assert (own["judged"] > 0).any()
    key = ["target", "style", "object", "seed"]
    reached = table[(table["method"] == "uce") & table["success"]]
    again = own[own["success"].astype(bool)]
    assert set(map(tuple, reached[key].to_numpy())) <= set(map(tuple, again[key].to_numpy())), "what was reached is reached again"


def test_replay_has_the_noise_and_what_succeeded_first(model: DiffusionModel, tmp_path: Path) -> None:
    columns = [*PROMPT, "seed_key", "success"]
    rows = [
        ["a trout .", "", "", "False"], ["two trout .", "", "", "False"], ["a fish .", "", "neon/fish/seed-search/3", "True"],
        ["a trout .", "", "", "True"],
    ]  # fmt: skip
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *([*list(PROMPT.values())[:4], *row] for row in rows)])
    goal = goal_of(SUITE, Target((Concept("object", "fish"),)), SUITE.request("neon", "fish", 1, 4), False)
    context = AttackContext(model, [goal], torch.zeros(1, *model.latent_shape))
    (tried,) = Replay(ReplayConfig(file=tmp_path / "prompts.csv", tried=10)).craft(context)
    own = goal.request.noise_key
    assert [(one.request.prompt, one.request.noise_key) for one in tried] == [
        ("a fish .", "neon/fish/seed-search/3"), ("a trout .", own), ("two trout .", own),
    ]  # fmt: skip


PROMPT = {"target": "object:fish", "style": "neon", "object": "fish", "seed": "1", "prompt": "A trout.", "learned": ""}
NAME = "<learned-abcdefabcdef>"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target": "object:whale"}, "object:whale"),
        ({"style": "baroque"}, "style of minicanvas"),
        ({"object": "whale"}, "object of minicanvas"),
        ({"seed": "99"}, "has no prompt for any picture of this run, the first of which is object:fish, "),
        ({"seed": "one"}, 'line 2 of prompts.csv: the seed "one" is no whole number'),
        ({"prompt": " "}, "line 2 of prompts.csv has no prompt"),
        ({"prompt": None}, "line 2 of prompts.csv has no prompt"),
        ({"prompt": "trout " * 30}, "tokens; the text encoder takes 22"),
        ({"learned": "{"}, 'line 2 of prompts.csv: "learned" is not'),
        ({"prompt": f"A {NAME}"}, f"has no embedding of {NAME}"),
        ({"prompt": f"A {NAME}", "learned": json.dumps({NAME: [1]})}, "has 1 numbers, this model's tokens have"),
        ({"prompt": f"A {NAME}", "learned": json.dumps({NAME: [0.0] * 128})}, "were they rounded?"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused_before_anything_is_sampled(
    change: dict[str, str | None], sentence: str, tmp_path: Path
) -> None:
    values = list({**PROMPT, **change}.values())
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(PROMPT), values[: values.index(None)] if None in values else values])
    found = bench(*RUN, "--attack-prompts", "prompts.csv", cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert sentence in " ".join(found.stderr.replace(f"{tmp_path}/", "").split())
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.glob("run/units/*"))


def test_replay_needs_a_file_with_prompts(tmp_path: Path) -> None:
    for name in ("replay", "replay:file=prompts.csv"):
        found = bench(*RUN, "--attacks", name, cwd=tmp_path)
        assert found.returncode == 2
        assert "replay is told its file by --attack-prompts FILE" in found.stderr
    for text, sentence in (
        (",".join(PROMPT) + "\n", "has no prompt in it"),
        ("prompt\nA trout.\n", "lacks the columns target, style, object, seed"),
    ):
        (tmp_path / "prompts.csv").write_text(text)
        found = bench(*RUN, "--attack-prompts", "prompts.csv", cwd=tmp_path)
        assert found.returncode == 2
        assert sentence in " ".join(found.stderr.split())


def test_what_was_never_judged_has_survived_nothing(tmp_path: Path) -> None:
    """A file for one of the run's goals: the others are holes, with a note."""
    with (tmp_path / "one.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(PROMPT), list(PROMPT.values())])
    found = bench(*RUN, "--attack-prompts", "one.csv", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    own = pd.DataFrame(outcomes_of(tmp_path / "run", "uce")["replay"])
    assert set(own["style"]) == {"neon"}, "whatever the clean prompts of the others show"
    record = Record.from_json((tmp_path / "run" / "records" / "uce.json").read_bytes())
    assert "nothing to try for" in record.attacks["replay"]["missing"]["object:fish"]
    assert "nothing to try for" in (tmp_path / "run" / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("attacks", "sentence"),
    [
        ("unlearndifatk", "unlearndiffatk"),
        ("random:tried=0", "tried"),
        ("random:trid=3", "tried"),
        ("unlearndiffatk:tokens=30", "the text encoder takes 22"),
        ("random:tokens=30", "the text encoder takes 22"),
        ("p4d-n:tokens=40", "The attack has 40 tokens; the text encoder takes 22"),
        ("prompts-v1:tokens=3", "prompts-v1 is a set and takes no parameters"),
        ("", "--attacks names no attack"),
    ],
)
def test_bad_input_is_one_sentence(attacks: str, sentence: str, tmp_path: Path) -> None:
    found = bench(*RUN, "--attacks", attacks, cwd=tmp_path)
    assert found.returncode == 2
    assert sentence in " ".join((found.stderr + found.stdout).split())
    assert "Traceback" not in found.stderr


def test_a_plan_says_what_attacks_take(tmp_path: Path) -> None:
    found = bench(
        "plan", "--methods", "uce,esd", "--concepts", "fish", "--tuning", "untuned", "--attacks", "random,unlearndiffatk", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    rows = {line.split()[1]: line.split()[3::2] for line in found.stdout.splitlines() if line.startswith("│")}
    assert rows["random"] == ["3", "15", "165"], "three victims with five goals, each ten pictures and the clean one"
    assert rows["unlearndiffatk"][:2] == ["3", "15"]


OWN = """
from dataclasses import dataclass, replace
from bench.api import Card, Erasure, MethodConfig, PlainText, TextEdit, UnlearningMethod


@dataclass(frozen=True)
class Deaf(TextEdit):
    def encode(self, model, texts, role, steps):
        return [replace(cond, embeds=cond.embeds.detach() * 0.0) for cond in PlainText().encode(model, texts, role, steps)]


class Own(UnlearningMethod):
    card, Config, parts = Card("Own", "", "", ("style", "object")), MethodConfig, (Deaf,)

    def fit(self, context, concepts):
        return Erasure(text=Deaf())
"""


def test_a_victim_without_a_gradient_is_attacked_by_its_loss_alone_and_marked(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    asked = "unlearndiffatk:iterations=2:timesteps=2:tokens=2:location=suffix"
    found = bench(*RUN, "--methods", "own.py:Own", "--attacks", asked, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "No gradient goes through Deaf" in found.stderr
    (columns,) = outcomes_of(tmp_path / "run", "Own").values()
    own = pd.DataFrame(columns)
    assert own["note"].str.startswith("black box: No gradient goes through Deaf").all()
    tried = own[own["judged"] > 0]
    assert len(tried)
    assert (tried["gradient_steps"] == 2 * tried["judged"]).all()
    for clean, prompt in zip(tried["clean_prompt"], tried["prompt"], strict=True):
        assert prompt.replace(" .", ".").startswith(clean.lower()), "tokens and place are those that were asked for"
    assert "ran as black box" in (tmp_path / "run" / "leaderboard.md").read_text()

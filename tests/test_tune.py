"""Tuning: what it may spend, what it finds, what it never touches, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from bench import registry, tune
from bench.api import (
    BenchError,
    Card,
    Concept,
    Cond,
    DiffusionModel,
    Erasure,
    FitContext,
    MethodConfig,
    PlainText,
    Role,
    TextEdit,
    UnlearningMethod,
    Weights,
)
from bench.config import RunConfig
from bench.diffusion.sampler import Sampler
from bench.interfaces import Classifier
from bench.scoring import load_judge
from bench.session import method_specs
from bench.suites.minicanvas import SUITE, MiniCanvas
from bench.suites.suite import JudgeFiles, JudgeRole
from bench.trials import Budget, settings_of
from bench.tune import FAILED, Tuner, prepare
from bench.tuned import read
from bench.types import Target

NEON, FISH = Concept("style", "neon"), Concept("object", "fish")
BUDGET = Budget(settings=5, pictures=56, eta=2)


@dataclass(frozen=True)
class Swap(TextEdit):
    """Puts another word in a prompt; without a word, takes the whole prompt away."""

    word: str
    by: str

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        return PlainText().encode(model, [text.replace(self.word, self.by) if self.word else "" for text in texts], role, steps)


class FakeConfig(MethodConfig):
    mode: Literal["nothing", "all", "broken", "weights", "good"] = "nothing"
    other: float = 1.0


class Fake(UnlearningMethod):
    """Its best setting is known: exchange the concept's name, touch nothing else."""

    card = Card(title="Fake", paper="", bibtex="", supports=("style",))
    Config = FakeConfig
    parts = (Swap,)
    tuning = {"mode": ("all", "broken", "weights", "good")}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        word, by = context.texts(concepts[0]).pairs[0]
        if self.config.mode == "broken":
            raise BenchError("It is broken.")
        if self.config.mode == "weights":
            name = "conv_out.weight"
            return Erasure(weights=Weights({f"unet.{name}": torch.zeros_like(dict(context.model.unet.named_parameters())[name])}))
        return Erasure(text={"nothing": None, "all": Swap("", ""), "good": Swap(word, by)}[self.config.mode])


class Hopeless(Fake):
    tuning = {"other": (2.0,)}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        raise BenchError("It is broken.")


class OwnSuite(MiniCanvas):
    """Minicanvas with its own folder of tuned parameters, noting which judges are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.roles: list[JudgeRole] = []

    @property
    def tuned_folder(self) -> Path:
        return self.folder

    def judge(self, role: JudgeRole) -> JudgeFiles:
        self.roles.append(role)
        return super().judge(role)


@dataclass
class Seen:
    """A `Reporter` that remembers."""

    sampled: int = 0
    totals: list[tuple[int, int]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        pass

    def total(self, pictures: int, done: int) -> None:
        self.totals.append((pictures, done))

    def advance(self, pictures: int) -> None:
        self.sampled += pictures


@pytest.fixture(autouse=True)
def _fake_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"fake": f"{__name__}:Fake", "hopeless": f"{__name__}:Hopeless"}
    real = registry.methods()
    monkeypatch.setattr(registry, "methods", lambda: real | own)


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return load_judge(SUITE, "tuning", torch.device("cpu"))


def tuner_of(model: DiffusionModel, judge: Classifier, name: str = "fake", budget: Budget = BUDGET, steps: int = 4) -> Tuner:
    return Tuner(SUITE, name, budget, settings_of(name, SUITE, budget.settings), model, judge, steps, torch.float32, slots=8)


def search(tuner: Tuner, path: Path, *concepts: Concept, again: bool = False) -> tuple[dict[str, Any], Seen]:
    seen = Seen()
    return tune.tune(tuner, concepts, path, {} if again else read(path), seen, seen.log.append), seen


@dataclass(frozen=True)
class Tuned:
    """Two concepts of a method that supports styles, tuned with all that was asked of sampler and judge noted."""

    path: Path
    body: dict[str, Any]
    seen: Seen
    requests: list[Any]


@pytest.fixture(scope="module")
def tuned(model: DiffusionModel, judge: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    path, real, requests = tmp_path_factory.mktemp("tuned") / "fake.toml", Sampler.all, []

    def sample(self: Sampler, rows: Sequence[Any], *rest: Any) -> Any:
        requests.extend(row.request for row in rows)
        return real(self, rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "all", sample)
        patch.setattr(registry, "methods", lambda: {"fake": f"{__name__}:Fake"})
        before = {name: value.clone() for name, value in model.unet.state_dict().items()}
        body, seen = search(tuner_of(model, judge), path, NEON, FISH)
        assert all(torch.equal(before[name], value) for name, value in model.unet.state_dict().items())
    return Tuned(path, body, seen, requests)


def test_nothing_to_tune_is_one_sentence() -> None:
    for name in ("none", "negative-prompt"):
        with pytest.raises(BenchError, match=f"{name} declares nothing to tune"):
            prepare(SUITE, name, BUDGET, 4, "cpu", "float32", 8, {})
    with pytest.raises(BenchError, match="too few for 9 settings"):
        prepare(SUITE, "uce", Budget(9, 8), 4, "cpu", "float32", 8, {})


def test_the_planted_best_setting_wins(tuned: Tuned) -> None:
    assert tuned.body["concepts"] == {"style:neon": {"mode": "good"}}
    scores = tuned.body["scores"]["style:neon"]
    assert scores["tuned"] > 0.8
    assert scores["untuned"] == 0
    first, last = scores["rungs"]
    assert first.startswith("8 pictures; mode=good: ")
    assert first.endswith("mode=broken: failed")
    assert last.startswith("16 pictures; mode=good: ")
    assert last.count(":") == 2
    assert "; untuned: 0.0000" in last, "of equals the earlier stays"


def test_what_cannot_be_tuned_is_told(tuned: Tuned) -> None:
    assert tuned.seen.log == [
        "object:fish is left out: fake does not support concepts of kind object.",
        "fake on style:neon, mode=broken: the fit failed. It is broken.",
    ]


def test_no_picture_is_sampled_twice_or_outside_the_budget(tuned: Tuned) -> None:
    assert tuned.seen.totals == [(56, 0)]
    assert tuned.seen.sampled == 56
    assert len(tuned.requests) == 4 * 8 + 2 * 8 + 16, "the broken setting has none, the unedited model its own"
    assert {request.noise_key.partition("/")[0] for request in tuned.requests} == {"tune"}


def test_only_the_tuning_judge_is_loaded(tmp_path: Path) -> None:
    suite = OwnSuite(tmp_path)
    tuner = prepare(suite, "fake", BUDGET, 4, "cpu", "auto", 8, {"budget": {"dtype": "float32"}})
    assert tuner.dtype == torch.float32, "a continued file keeps its numerics"
    assert suite.roles == ["tuning"]


def test_the_authors_grid_and_the_judge_that_evaluates_are_had_by_name(tmp_path: Path) -> None:
    suite = OwnSuite(tmp_path)
    every = settings_of("saeuron", SUITE, 22, "published")
    assert len(every) == 22
    assert {(one.percentile, one.multiplier) for one in every[1:]} == {
        (percentile, float(-multiplier)) for percentile in (99.99, 99.995, 99.999) for multiplier in (1, 5, 10, 15, 20, 25, 30)
    }
    with pytest.raises(BenchError, match="uce declares no published grid"):
        settings_of("uce", SUITE, 9, "published")
    tuner = prepare(suite, "fake", BUDGET, 4, "cpu", "float32", 8, {}, role="evaluation")
    assert suite.roles == ["evaluation"]
    assert tuner.described()["on"] == "evaluation"
    assert tuner.described()["command"].endswith("--judge evaluation")


def test_a_concept_without_a_fit_is_left_out(model: DiffusionModel, judge: Classifier, tmp_path: Path) -> None:
    body, seen = search(tuner_of(model, judge, "hopeless"), tmp_path / "x.toml", NEON)
    assert not body["concepts"]
    assert not (tmp_path / "x.toml").exists()
    assert seen.log[-1] == "style:neon is left out: every fit failed. It is broken."


def test_scores_of_failed_settings_lose(model: DiffusionModel, judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "tuning", {"mode": ("broken",)})
    tuner = tuner_of(model, judge, budget=Budget(2, 4, 2), steps=2)
    found = tuner.search([NEON], lambda text: None, lambda pictures: None, lambda text: None)
    assert found.best == 0
    (rung,) = found.rungs
    assert rung[0, NEON] >= 0
    assert rung[1, NEON] == found.last_score(1, NEON) == FAILED


@pytest.fixture
def quick(model: DiffusionModel, judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> Tuner:
    """Two settings, two pictures each."""
    monkeypatch.setattr(Fake, "tuning", {"mode": ("good",)})
    return tuner_of(model, judge, budget=Budget(2, 4, 2), steps=2)


def test_the_same_command_continues(quick: Tuner, tmp_path: Path) -> None:
    path, pop = tmp_path / "fake.toml", Concept("style", "pop")
    search(quick, tmp_path / "whole.toml", NEON, pop)
    search(quick, path, pop)
    body, seen = search(quick, path, NEON, pop)
    assert seen.totals == [(8, 4)]
    assert seen.sampled == 4
    assert body["concepts"].keys() == {"style:neon", "style:pop"}
    assert path.read_bytes() == (tmp_path / "whole.toml").read_bytes(), "whatever the order"
    before = path.read_bytes()
    assert search(quick, path, NEON, pop)[1].sampled == 0
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_a_stop_keeps_the_concepts_that_are_done(quick: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "fake.toml", Tuner.search

    def stop(self: Tuner, concepts: Sequence[Concept], *rest: Any) -> Any:
        if concepts != (NEON,):
            raise KeyboardInterrupt
        return real(self, concepts, *rest)

    monkeypatch.setattr(Tuner, "search", stop)
    with pytest.raises(KeyboardInterrupt):
        search(quick, path, NEON, Concept("style", "pop"))
    assert read(path)["concepts"].keys() == {"style:neon"}


class Torn(Fake):
    """Each concept likes another setting; one is not bad for either."""

    tuning = {"mode": ("all", "good", "weights")}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        if self.config.mode != "weights":
            wrong = {"all": "pop", "good": "neon", "nothing": ""}[self.config.mode]
            if concepts[0].name == wrong:
                raise BenchError("It is not for this one.")
        word, by = context.texts(concepts[0]).pairs[0]
        return Erasure(text=None if self.config.mode == "nothing" else Swap(word, by))


def test_a_shared_setting_is_the_best_for_all_that_were_asked(
    model: DiffusionModel, judge: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "Fake", Torn)
    pop, suite = Concept("style", "pop"), OwnSuite(tmp_path)
    tuner = replace(tuner_of(model, judge, budget=Budget(4, 12, 2), steps=4), suite=suite, share=(pop, NEON, FISH))
    place = suite.tuned_file("fake", shared=True)
    assert place is not None
    body, seen = search(tuner, place, pop, NEON, FISH)
    assert place == tmp_path / "shared" / "fake.toml"
    assert set(body["concepts"]) == {f"style:{name}" for name in suite.styles}, "all of the kind, though two were tried"
    assert all(own == {"mode": "weights"} for own in body["concepts"].values()), "what fits both, though others fit one as well"
    assert set(body["scores"]) == {"style:neon", "style:pop"}
    assert read(place) == body
    assert seen.totals == [(24, 0)]
    assert search(tuner, place, pop, NEON)[1].sampled == 0, "it is done"
    with pytest.raises(BenchError, match="was tuned with shared"):
        search(replace(tuner, share=(NEON,)), place, NEON)
    config = RunConfig(suite="minicanvas", preset="smoke", methods=("fake",), settings={}, targets=("style:mosaic",), seeds=1, steps=4)
    _, with_tuning, without = method_specs(config.model_copy(update={"tuning": "shared"}), suite)
    assert with_tuning.config_for(Target((Concept("style", "mosaic"),)))["mode"] == "weights"
    assert without.label == "fake (untuned)"
    assert len(method_specs(config, suite)) == 2, "what a kind shares is taken by name alone"
    (tmp_path / "fake.toml").write_bytes(place.read_bytes().replace(b'"weights"', b'"good"'))
    for tuning, mode in (("both", "good"), ("shared", "weights")):
        _, row, _ = method_specs(config.model_copy(update={"tuning": tuning}), suite)
        assert row.config_for(Target((Concept("style", "mosaic"),)))["mode"] == mode, "per concept, unless asked"


def test_another_budget_or_version_is_refused_until_again(quick: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pop = tmp_path / "fake.toml", Concept("style", "pop")
    search(quick, path, NEON)
    before = path.read_bytes()
    other = tuner_of(quick.model, quick.judge, budget=Budget(2, 6, 2), steps=2)
    with pytest.raises(BenchError, match=r"pictures = 4, this command has 6: pass --again to start it anew, or another --out"):
        search(other, path, pop)
    with monkeypatch.context() as patch:
        patch.setattr(Fake, "version", 2)
        with pytest.raises(BenchError, match="method_version = 1"):
            search(quick, path, pop)
    assert path.read_bytes() == before
    search(other, path, pop, again=True)
    assert read(path)["concepts"].keys() == {"style:pop"}


def test_a_run_takes_what_tuning_found(tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = OwnSuite(tmp_path)
    (tmp_path / "fake.toml").write_bytes(tuned.path.read_bytes())
    found = suite.tuned("fake")
    assert found is not None
    assert found.budget == tuned.body["budget"]
    assert (found.budget["settings"], found.budget["pictures"], found.budget["split"]) == (5, 56, "tune")
    config = RunConfig(
        suite="minicanvas",
        preset="smoke",
        methods=("fake",),
        settings={},
        targets=("style:neon", "style:pop"),
        seeds=1,
        steps=4,
        batch_size=8,
    )
    _, with_tuning, without = method_specs(config, suite)
    assert with_tuning.config_for(Target((NEON,))) == {"mode": "good", "other": 1.0}
    assert with_tuning.config_for(Target((Concept("style", "pop"),))) == {"mode": "nothing", "other": 1.0}
    assert without.label == "fake (untuned)"
    assert without.config_for(Target((NEON,))) == {"mode": "nothing", "other": 1.0}
    assert with_tuning.budget == found.budget
    for key, other in (("method_version", 99), ("untuned", '{"mode":"nothing","other":2.0}'), ("inputs", "another")):
        stale = replace(found, budget={**found.budget, key: other})
        monkeypatch.setattr(OwnSuite, "tuned", lambda self, name, shared, stale=stale: stale if name == "fake" else None)
        with pytest.raises(BenchError, match="tune it again"):
            method_specs(config, suite)
        assert len(method_specs(config.model_copy(update={"tuning": "untuned"}), suite)) == 2

"""Per-concept parameters for any method: successive halving on the tuning judge, noise and templates.

Every method gets the same budget per concept: so many settings, so many pictures. The objective is the score that ranks.
The result is a TOML file that the suite reads (`Suite.tuned`); nothing that the evaluation judges with, prompts or draws
noise from is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd
import torch

from bench.config import DTypeName, method_config
from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.numerics import pick_device, pick_dtype
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError
from bench.files import write_atomic
from bench.interfaces import Classifier, Erasure, MethodConfig, Weights
from bench.metrics.unlearning import ranking_score, scores
from bench.registry import method, short_name
from bench.scoring import judge_all, load_judge
from bench.session import fit_context
from bench.suites.suite import JudgeRole, Suite
from bench.tuned import check_same, inputs_digest, toml
from bench.types import Concept, GenerationRequest, Target, canonical_json, content_hash

if TYPE_CHECKING:
    from bench.engine.job import Reporter

FAILED = -1.0
GridName = Literal["own", "published"]
FIT_SEED = 0


@dataclass(frozen=True)
class Budget:
    """What tuning may spend on one concept: settings to try, and pictures to sample over all of them together."""

    settings: int
    pictures: int
    eta: int = 3
    """The best 1/eta of a rung's settings enter the next, each with eta times the pictures."""

    def rungs(self, tried: int) -> list[tuple[int, int]]:
        """(settings, pictures each has by its end) per rung of `tried` settings, n₀ → n₀ // eta → …, while two or more are left.

        A setting's pictures add up: r, then r·eta in all, then r·eta². r is the largest even number (half of the pictures show
        the concept) with r·(n₀ + Σ_k n_k·(eta − 1)·eta^(k−1)) ≤ `pictures`. BenchError if it is 0.
        """
        counts = [min(tried, self.settings)]
        while counts[-1] // self.eta > 1:
            counts.append(counts[-1] // self.eta)
        units = counts[0] + sum(n * (self.eta - 1) * self.eta**k for k, n in enumerate(counts[1:]))
        first = self.pictures // units // 2 * 2
        if first == 0:
            raise BenchError(f"{self.pictures} pictures are too few for {counts[0]} settings: give --pictures {2 * units} or more.")
        return [(n, first * self.eta**k) for k, n in enumerate(counts)]


def settings_of(name: str, suite: Suite, count: int, grid: GridName = "own") -> list[MethodConfig]:
    """The untuned configuration and, in the order of the method's grid, at most `count` − 1 others of it.

    Which others is decided by a hash of the method's name and their values. BenchError if the method has no such grid.
    """
    kind = method(name)
    values_of = grid_of(name, grid)
    if not values_of:
        raise BenchError(f"{name} declares {'nothing to tune' if grid == 'own' else 'no published grid'}: run it as it is.")
    usual = suite.method_settings.get(short_name(name), {})
    untuned = method_config(name, kind.Config, usual)
    points = [dict(zip(values_of, values, strict=True)) for values in product(*values_of.values())]
    toml({"grid": dict(values_of)})  # a value that the result could not hold is told now
    configs = {canonical_json(point): method_config(name, kind.Config, {**usual, **point}) for point in points}
    others = [point for point, config in configs.items() if config != untuned]
    chosen = set(sorted(others, key=lambda point: content_hash([short_name(name), point]))[: count - 1])
    return [cast(MethodConfig, config) for config in (untuned, *(configs[point] for point in others if point in chosen))]


def grid_of(name: str, grid: GridName) -> Mapping[str, tuple[Any, ...]]:
    """A method's own grid, or its authors'."""
    kind = method(name)
    found: Mapping[str, tuple[Any, ...]] = kind.tuning if grid == "own" else kind.published_tuning
    return found


def changes(config: MethodConfig, untuned: MethodConfig) -> dict[str, Any]:
    """The parameters, as JSON, that differ from the untuned configuration."""
    before = untuned.model_dump(mode="json")
    return {key: value for key, value in config.model_dump(mode="json").items() if value != before[key]}


def tuning_requests(suite: Suite, concept: Concept, count: int, steps: int) -> list[GenerationRequest]:
    """The first `count` pictures of a concept's sequence: those that show it and those that do not in turn, none twice.

    Both walk the grid's diagonals, so that the other styles and objects come up evenly; concepts share what they can.
    """
    n, m = len(suite.styles), len(suite.objects)
    cells = [(i % n, (i + i // lcm(n, m)) % m) for i in range(n * m)]
    shows = Target((concept,)).involves
    halves = [[cell for cell in cells if shows(suite.styles[cell[0]], suite.objects[cell[1]]) == wanted] for wanted in (True, False)]
    found = []
    for k in range(count):
        half = halves[k % 2]
        turn, place = divmod(k // 2, len(half))
        i, j = half[place]
        seed = 1 + turn + (i + j) % 2  # a seed chooses the template: neighbours in the grid get different ones
        found.append(suite.request(suite.styles[i], suite.objects[j], seed, steps, split="tune"))
    return found


Verdict = tuple[str | None, str | None]
"""The style and the object that the judge sees."""


@dataclass(frozen=True)
class Found:
    """The best setting's number, and per rung the score of each setting that was in it."""

    best: int
    rungs: tuple[Mapping[int, float], ...]

    def last_score(self, setting: int) -> float:
        """On all pictures that the setting had."""
        return [rung[setting] for rung in self.rungs if setting in rung][-1]


@dataclass(frozen=True)
class Tuner:
    """One method on one suite, with all that is loaded once."""

    suite: Suite
    name: str
    budget: Budget
    settings: Sequence[MethodConfig]
    model: DiffusionModel
    judge: Classifier
    steps: int
    dtype: torch.dtype
    slots: int
    grid: GridName = "own"
    role: JudgeRole = "tuning"
    """Whose verdicts choose."""
    unedited: dict[str, Verdict] = field(default_factory=dict)
    """What became of the requests under the base model, by their id."""

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """See `Budget.rungs`."""
        return self.budget.rungs(len(self.settings))

    @property
    def pictures(self) -> int:
        """How many pictures one concept takes, beside the unedited model's."""
        before = [0, *(pictures for _, pictures in self.rungs)]
        return sum(count * (pictures - had) for (count, pictures), had in zip(self.rungs, before, strict=False))

    def described(self) -> dict[str, Any]:
        """The TOML's [budget]: the same for two commands exactly if their results may stand in one file."""
        kind = method(self.name)
        dtype = str(self.dtype).removeprefix("torch.")
        return {
            **asdict(self.budget), "split": "tune", "steps": self.steps, "tried": len(self.settings), "judge": self.judge.digest,
            "method_version": kind.version, "model": self.model.digest, "inputs": inputs_digest(kind(self.settings[0]), self.suite),
            "dtype": dtype, "grid": canonical_json(dict(grid_of(self.name, self.grid))),
            **({"on": "evaluation"} if self.role == "evaluation" else {}),
            "untuned": canonical_json(self.settings[0].model_dump(mode="json")),
            "command": f"python -m bench tune {self.name} --suite {self.suite.key} --settings {self.budget.settings}"
            f" --pictures {self.budget.pictures} --steps {self.steps} --dtype {dtype} --batch-size {self.slots // 2}"
            f"{'' if self.grid == 'own' else ' --grid published'}{'' if self.role == 'tuning' else ' --judge evaluation'}",
        }  # fmt: skip

    def search(self, concept: Concept, say: Callable[[str], None], advance: Callable[[int], None], log: Callable[[str], None]) -> Found:
        """Successive halving. A setting whose fit fails is told to `log`; BenchError if all fail or none can be scored."""
        erasures, failed = self._fit_all(concept, say, log)
        requests = tuning_requests(self.suite, concept, self.rungs[-1][1], self.steps)
        say("sampling the unedited model")
        self._sample_unedited(requests)
        rungs: list[Mapping[int, float]] = []
        verdicts: dict[int, list[Verdict]] = {number: [] for number in erasures}
        before, ranked = 0, list(erasures)
        for count, pictures in self.rungs:
            erasures = {number: erasures[number] for number in ranked[:count]}
            say(f"{len(erasures)} settings, {pictures} pictures each")
            for group in _groups(erasures):
                self._sample(group, requests[before:pictures], verdicts, advance)
            advance((count - len(erasures)) * (pictures - before))
            judged = {number: self._score(concept, requests[:pictures], verdicts[number]) for number in sorted(erasures)}
            rungs.append(judged if before else judged | failed)
            ranked = sorted(judged, key=lambda number: -judged[number])  # stable: of equals the earlier wins
            before = pictures
            if len(ranked) == 1:
                break
        return Found(ranked[0], tuple(rungs))

    def label(self, number: int) -> str:
        """A setting by what it changes."""
        changed = changes(self.settings[number], self.settings[0])
        return " ".join(f"{key}={value}" for key, value in changed.items()) or "untuned"

    def _fit_all(
        self, concept: Concept, say: Callable[[str], None], log: Callable[[str], None]
    ) -> tuple[dict[int, Erasure], dict[int, float]]:
        """The erasures of the settings that fit, `FAILED` for the others. BenchError if there is no erasure."""
        erasures: dict[int, Erasure] = {}
        reasons: dict[int, str] = {}
        for number in range(len(self.settings)):
            try:
                erasures[number] = self._fit(number, concept, say)
            except BenchError as error:
                reasons[number] = str(error)
                log(f"{self.name} on {concept}, {self.label(number)}: the fit failed. {error}")
        if not erasures:
            raise BenchError(f"every fit failed. {reasons[0]}")
        return erasures, dict.fromkeys(reasons, FAILED)

    def _fit(self, number: int, concept: Concept, say: Callable[[str], None]) -> Erasure:
        def progress(share: float, text: str) -> None:
            say(f"setting {number + 1} of {len(self.settings)}, {text} {share:.0%}")

        progress(0, "fitting")
        preset = replace(self.suite.presets["full"], steps=self.steps)
        context = fit_context(self.suite, preset, self.model, self.dtype, self.slots, FIT_SEED, progress)
        erasure: Erasure = method(self.name)(self.settings[number]).fit(context, (concept,))
        if erasure.weights is None:
            return erasure
        # Many are held at once: off the device they do not crowd out the model.
        return replace(erasure, weights=Weights({name: value.cpu() for name, value in erasure.weights.values.items()}))

    def _sample(
        self, erasures: Mapping[int, Erasure], requests: Sequence[GenerationRequest], verdicts: Mapping[int, list[Verdict]],
        advance: Callable[[int], None] = lambda pictures: None,
    ) -> None:  # fmt: skip
        """Add the verdicts of every erasure on the requests; changed weights must be alone."""
        rows = [Row(request, erasure) for erasure in erasures.values() for request in requests]
        with ExitStack() as stack:
            self.model.sampling_unet(self.dtype)  # the copy must exist before weights are swapped, to be swapped too
            for erasure in erasures.values():
                if erasure.weights is not None:
                    stack.enter_context(self.model.weights(erasure.weights.values))
            sampled = Sampler(self.model, self.dtype, self.slots, share=True).all(rows, advance)
        seen = judge_all(self.judge, self.model.decode(sampled.latents))
        styles = [self.judge.styles[i] for i in seen.style.argmax(1).tolist()]
        objects = [self.judge.objects[i] for i in seen.object.argmax(1).tolist()]
        found: list[Verdict] = list(zip(styles, objects, strict=True))
        for broken in sampled.broken:  # no picture: nothing was seen, rightly or wrongly
            found[broken] = None, None
        for place, number in enumerate(erasures):
            verdicts[number] += found[place * len(requests) : (place + 1) * len(requests)]

    def _sample_unedited(self, requests: Sequence[GenerationRequest]) -> None:
        missing = [request for request in requests if request.id not in self.unedited]
        if missing:
            verdicts: dict[int, list[Verdict]] = {0: []}
            self._sample({0: Erasure()}, missing, verdicts)
            self.unedited.update(zip((request.id for request in missing), verdicts[0], strict=True))

    def _score(self, concept: Concept, requests: Sequence[GenerationRequest], verdicts: Sequence[Verdict]) -> float:
        """The ranking score in [0, 1] relative to the unedited model on the same requests."""
        target, rules = Target((concept,)), self.suite.rules
        own = scores(_frame(requests, verdicts), target, rules)
        base = scores(_frame(requests, [self.unedited[request.id] for request in requests]), target, rules)
        score = ranking_score(own.ua, own.ira, own.cra, base.ira, base.cra)
        if score is None:
            raise BenchError(f"the unedited model gets none of {len(requests)} pictures right: give more --pictures or --steps")
        return score


def _groups(erasures: Mapping[int, Erasure]) -> list[dict[int, Erasure]]:
    """What may share UNet calls: all that leave the weights alone, each other one."""
    row_wise = {number: erasure for number, erasure in erasures.items() if erasure.weights is None}
    return [*([row_wise] if row_wise else []), *({number: erasures[number]} for number in erasures if number not in row_wise)]


def _frame(requests: Sequence[GenerationRequest], verdicts: Sequence[Verdict]) -> pd.DataFrame:
    rows = [(r.style, r.object, r.seed, *verdict) for r, verdict in zip(requests, verdicts, strict=True)]
    return pd.DataFrame(rows, columns=["style", "object", "seed", "style_pred", "object_pred"])


def prepare(
    suite: Suite, name: str, budget: Budget, steps: int, device: str, dtype: DTypeName, batch_size: int, kept: Mapping[str, Any],
    grid: GridName = "own", role: JudgeRole = "tuning",
) -> Tuner:  # fmt: skip
    """Check that there is something to tune, load the model and the judge. Writes nothing.

    `kept` is the file that is continued (`bench.tuned.read`): `auto` keeps its dtype.
    """
    settings = settings_of(name, suite, budget.settings, grid)
    budget.rungs(len(settings))
    where = pick_device(device)
    model, judge, slots = load_model(suite.model_folder(), where), load_judge(suite, role, where), 2 * batch_size
    chosen = kept.get("budget", {}).get("dtype", dtype) if dtype == "auto" else dtype
    return Tuner(suite, name, budget, settings, model, judge, steps, pick_dtype(chosen, model, slots), slots, grid, role)


def tune(
    tuner: Tuner, concepts: Sequence[Concept], path: Path, kept: Mapping[str, Any], reporter: Reporter, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Tune the concepts that `kept` lacks, writing the file at `path` after each; returns its tables.

    `log` gets a sentence on every concept that is left out. BenchError if `kept` was made with another budget.
    """
    body = {"budget": tuner.described(), "concepts": dict(kept.get("concepts", {})), "scores": dict(kept.get("scores", {}))}
    check_same(kept, body["budget"], path)
    supported = method(tuner.name).card.supports
    for concept in concepts:
        if concept.kind not in supported:
            log(f"{concept} is left out: {tuner.name} does not support concepts of kind {concept.kind}.")
    wanted = [concept for concept in concepts if concept.kind in supported]
    left = [concept for concept in wanted if str(concept) not in body["concepts"]]
    reporter.total(tuner.pictures * len(wanted), tuner.pictures * (len(wanted) - len(left)))
    for place, concept in enumerate(left, start=len(wanted) - len(left) + 1):
        say = partial(_say, reporter, f"{concept} ({place} of {len(wanted)})")
        try:
            found = tuner.search(concept, say, reporter.advance, log)
        except BenchError as error:
            log(f"{concept} is left out: {error}")
            continue
        body["concepts"][str(concept)] = changes(tuner.settings[found.best], tuner.settings[0])
        body["scores"][str(concept)] = _scores_table(tuner, found)
        write_atomic(path, toml(_in_order(body, tuner.suite)).encode())
    return body


def _say(reporter: Reporter, title: str, text: str) -> None:
    reporter.say(f"{title}: {text}")


def _scores_table(tuner: Tuner, found: Found) -> dict[str, Any]:
    """Untuned and tuned score, and every rung in words, best first."""
    rungs = []
    for rung, (_, pictures) in zip(found.rungs, tuner.rungs, strict=False):
        ranked = sorted(rung.items(), key=lambda item: (-item[1], item[0]))
        told = (f"{tuner.label(number)}: {'failed' if score == FAILED else f'{score:.4f}'}" for number, score in ranked)
        rungs.append(f"{pictures} pictures; " + "; ".join(told))
    return {"untuned": round(found.last_score(0), 4), "tuned": round(found.last_score(found.best), 4), "rungs": rungs}


def _in_order(body: Mapping[str, Mapping[str, Any]], suite: Suite) -> dict[str, Mapping[str, Any]]:
    """The same file whatever the order in which concepts were asked for."""
    names = [str(concept) for concept in suite.concepts if str(concept) in body["concepts"]]
    return {"budget": body["budget"], **{part: {name: body[part][name] for name in names} for part in ("concepts", "scores")}}

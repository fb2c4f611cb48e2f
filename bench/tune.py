"""Parameters for any method, per concept or per kind: successive halving on the tuning judge, noise and templates.

Every method gets the same budget per concept that is tried: so many settings, so many pictures. The objective is the score that ranks.
The result is a TOML file that the suite reads (`Suite.tuned`); nothing that the evaluation judges with, prompts or draws
noise from is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from bench.config import DTypeName
from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.numerics import pick_device, pick_dtype
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError
from bench.files import write_atomic
from bench.interfaces import Classifier, Erasure, MethodConfig, Weights
from bench.metrics.unlearning import ranking_score, scores
from bench.registry import method
from bench.scoring import judge_all, load_judge
from bench.session import fit_context
from bench.suites.suite import JudgeRole, Suite
from bench.trials import Budget, GridName, changes, grid_of, settings_of, tuning_requests
from bench.tuned import check_same, inputs_digest, toml
from bench.types import Concept, GenerationRequest, Target, canonical_json

if TYPE_CHECKING:
    from bench.engine.job import Reporter

FAILED = -1.0
FIT_SEED = 0


Verdict = tuple[str | None, str | None]
"""The style and the object that the judge sees."""


Trial = tuple[int, Concept]
"""A setting, by its number, on a concept."""


@dataclass(frozen=True)
class Found:
    """The best setting's number, and per rung the score on each concept of each setting that was in it."""

    best: int
    rungs: tuple[Mapping[Trial, float], ...]

    def last_score(self, setting: int, concept: Concept) -> float:
        """On all pictures that the setting had."""
        return [rung[setting, concept] for rung in self.rungs if (setting, concept) in rung][-1]


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
    share: tuple[Concept, ...] = ()
    """The concepts that choose one setting for all of their kind; none: each concept has its own."""
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
            **({"shared": [str(concept) for concept in self.share]} if self.share else {}),
            "untuned": canonical_json(self.settings[0].model_dump(mode="json")),
            "command": f"python -m bench tune {self.name} --suite {self.suite.key} --settings {self.budget.settings}"
            f" --pictures {self.budget.pictures} --steps {self.steps} --dtype {dtype} --batch-size {self.slots // 2}"
            f"{'' if self.grid == 'own' else ' --grid published'}{'' if self.role == 'tuning' else ' --judge evaluation'}"
            f"{' --share --concepts ' if self.share else ''}{','.join(concept.name for concept in self.share)}",
        }  # fmt: skip

    def search(
        self, concepts: Sequence[Concept], say: Callable[[str], None], advance: Callable[[int], None], log: Callable[[str], None]
    ) -> Found:
        """Successive halving by the mean score over the concepts.

        A setting whose fit fails is told to `log`; BenchError if all fail or none can be scored.
        """
        erasures, failed = self._fit_all(concepts, say, log)
        requests = {concept: tuning_requests(self.suite, concept, self.rungs[-1][1], self.steps) for concept in concepts}
        say("sampling the unedited model")
        self._sample_unedited([request for own in requests.values() for request in own])
        rungs: list[Mapping[Trial, float]] = []
        verdicts: dict[Trial, list[Verdict]] = {trial: [] for trial in erasures}
        before, ranked = 0, list(dict.fromkeys(number for number, _ in erasures))
        for count, pictures in self.rungs:
            erasures = {(number, concept): erasures[number, concept] for number in ranked[:count] for concept in concepts}
            say(f"{len(ranked[:count])} settings, {pictures} pictures each")
            for group in _groups(erasures):
                self._sample(group, {concept: own[before:pictures] for concept, own in requests.items()}, verdicts, advance)
            advance((count * len(concepts) - len(erasures)) * (pictures - before))
            judged = {trial: self._score(trial[1], requests[trial[1]][:pictures], verdicts[trial]) for trial in sorted(erasures)}
            rungs.append(judged if before else judged | failed)
            means = {number: sum(judged[number, concept] for concept in concepts) for number in sorted(ranked[:count])}
            ranked = sorted(means, key=lambda number: -means[number])  # stable: of equals the earlier wins
            before = pictures
            if len(ranked) == 1:
                break
        return Found(ranked[0], tuple(rungs))

    def label(self, number: int) -> str:
        """A setting by what it changes."""
        changed = changes(self.settings[number], self.settings[0])
        return " ".join(f"{key}={value}" for key, value in changed.items()) or "untuned"

    def _fit_all(
        self, concepts: Sequence[Concept], say: Callable[[str], None], log: Callable[[str], None]
    ) -> tuple[dict[Trial, Erasure], dict[Trial, float]]:
        """The erasures of the settings that fit every concept, `FAILED` for the others. BenchError if there is no erasure."""
        erasures: dict[Trial, Erasure] = {}
        reasons: dict[int, str] = {}
        for number in range(len(self.settings)):
            try:
                erasures |= {(number, concept): self._fit(number, concept, say) for concept in concepts}
            except BenchError as error:
                reasons[number] = str(error)
                names = ", ".join(map(str, concepts))
                log(f"{self.name} on {names}, {self.label(number)}: the fit failed. {error}")
        if not erasures:
            raise BenchError(f"every fit failed. {reasons[0]}")
        return erasures, {(number, concept): FAILED for number in reasons for concept in concepts}

    def _fit(self, number: int, concept: Concept, say: Callable[[str], None]) -> Erasure:
        def progress(share: float, text: str) -> None:
            say(f"setting {number + 1} of {len(self.settings)} on {concept}, {text} {share:.0%}")

        progress(0, "fitting")
        preset = replace(self.suite.presets["full"], steps=self.steps)
        context = fit_context(self.suite, preset, self.model, self.dtype, self.slots, FIT_SEED, progress)
        erasure: Erasure = method(self.name)(self.settings[number]).fit(context, (concept,))
        if erasure.weights is None:
            return erasure
        # Many are held at once: off the device they do not crowd out the model.
        return replace(erasure, weights=Weights({name: value.cpu() for name, value in erasure.weights.values.items()}))

    def _sample(
        self, erasures: Mapping[Trial, Erasure], requests: Mapping[Concept, Sequence[GenerationRequest]],
        verdicts: Mapping[Trial, list[Verdict]], advance: Callable[[int], None] = lambda pictures: None,
    ) -> None:  # fmt: skip
        """Add the verdicts of every erasure on its concept's requests; changed weights must be alone."""
        rows = [Row(request, erasure) for (_, concept), erasure in erasures.items() for request in requests[concept]]
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
        rest = iter(found)
        for trial in erasures:
            verdicts[trial] += islice(rest, len(requests[trial[1]]))

    def _sample_unedited(self, requests: Sequence[GenerationRequest]) -> None:
        missing = list({request.id: request for request in requests if request.id not in self.unedited}.values())
        if missing:
            anything = 0, self.suite.concepts[0]
            verdicts: dict[Trial, list[Verdict]] = {anything: []}
            self._sample({anything: Erasure()}, {anything[1]: missing}, verdicts)
            self.unedited.update(zip((request.id for request in missing), verdicts[anything], strict=True))

    def _score(self, concept: Concept, requests: Sequence[GenerationRequest], verdicts: Sequence[Verdict]) -> float:
        """The ranking score in [0, 1] relative to the unedited model on the same requests."""
        target, rules = Target((concept,)), self.suite.rules
        own = scores(_frame(requests, verdicts), target, rules)
        base = scores(_frame(requests, [self.unedited[request.id] for request in requests]), target, rules)
        score = ranking_score(own.ua, own.ira, own.cra, base.ira, base.cra)
        if score is None:
            raise BenchError(f"the unedited model gets none of {len(requests)} pictures right: give more --pictures or --steps")
        return score


def _groups(erasures: Mapping[Trial, Erasure]) -> list[dict[Trial, Erasure]]:
    """What may share UNet calls: all that leave the weights alone, each other one."""
    row_wise = {trial: erasure for trial, erasure in erasures.items() if erasure.weights is None}
    return [*([row_wise] if row_wise else []), *({trial: erasures[trial]} for trial in erasures if trial not in row_wise)]


def _frame(requests: Sequence[GenerationRequest], verdicts: Sequence[Verdict]) -> pd.DataFrame:
    rows = [(r.style, r.object, r.seed, *verdict) for r, verdict in zip(requests, verdicts, strict=True)]
    return pd.DataFrame(rows, columns=["style", "object", "seed", "style_pred", "object_pred"])


def prepare(
    suite: Suite, name: str, budget: Budget, steps: int, device: str, dtype: DTypeName, batch_size: int, kept: Mapping[str, Any],
    grid: GridName = "own", role: JudgeRole = "tuning", share: Sequence[Concept] = (),
) -> Tuner:  # fmt: skip
    """Check that there is something to tune, load the model and the judge. Writes nothing.

    `kept` is the file that is continued (`bench.tuned.read`): `auto` keeps its dtype.
    """
    settings = settings_of(name, suite, budget.settings, grid)
    budget.rungs(len(settings))
    where = pick_device(device)
    model, judge, slots = load_model(suite.model_folder(), where), load_judge(suite, role, where), 2 * batch_size
    chosen = kept.get("budget", {}).get("dtype", dtype) if dtype == "auto" else dtype
    return Tuner(suite, name, budget, settings, model, judge, steps, pick_dtype(chosen, model, slots), slots, grid, role, tuple(share))


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
    wanted = sorted(wanted, key=tuner.suite.concepts.index) if tuner.share else wanted
    groups = [tuple(own) for _, own in groupby(wanted, key=lambda concept: concept.kind if tuner.share else concept)]
    left = [group for group in groups if any(str(concept) not in body["scores"] for concept in group)]
    done = len(wanted) - sum(map(len, left))
    reporter.total(tuner.pictures * len(wanted), tuner.pictures * done)
    for place, group in enumerate(left, start=len(groups) - len(left) + 1):
        names = ", ".join(map(str, group))
        say = partial(_say, reporter, f"{names} ({place} of {len(groups)})")
        try:
            found = tuner.search(group, say, reporter.advance, log)
        except BenchError as error:
            log(f"{names} is left out: {error}")
            continue
        own = changes(tuner.settings[found.best], tuner.settings[0])
        covered = [concept for concept in tuner.suite.concepts if concept.kind == group[0].kind] if tuner.share else group
        body["concepts"] |= {str(concept): own for concept in covered}
        body["scores"] |= {str(concept): _scores_table(tuner, found, concept) for concept in group}
        write_atomic(path, toml(_in_order(body, tuner.suite)).encode())
    return body


def _say(reporter: Reporter, title: str, text: str) -> None:
    reporter.say(f"{title}: {text}")


def _scores_table(tuner: Tuner, found: Found, concept: Concept) -> dict[str, Any]:
    """Untuned and tuned score, and every rung in words, best first."""
    rungs = []
    for rung, (_, pictures) in zip(found.rungs, tuner.rungs, strict=False):
        own = {number: score for (number, of), score in rung.items() if of == concept}
        ranked = sorted(own.items(), key=lambda item: (-item[1], item[0]))
        told = (f"{tuner.label(number)}: {'failed' if score == FAILED else f'{score:.4f}'}" for number, score in ranked)
        rungs.append(f"{pictures} pictures; " + "; ".join(told))
    before, after = (round(found.last_score(number, concept), 4) for number in (0, found.best))
    return {"untuned": before, "tuned": after, "rungs": rungs}


def _in_order(body: Mapping[str, Mapping[str, Any]], suite: Suite) -> dict[str, Mapping[str, Any]]:
    """The same file whatever the order in which concepts were asked for."""
    names = [str(concept) for concept in suite.concepts]
    parts = {part: {name: body[part][name] for name in names if name in body[part]} for part in ("concepts", "scores")}
    return {"budget": body["budget"], **parts}

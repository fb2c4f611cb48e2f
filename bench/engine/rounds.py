"""Search and judge in turns: what an attack proposes is sampled and seen, until a goal is reached or its budget spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bench.adversary import Candidate, Goal, Search
from bench.codec import through
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler
from bench.engine.worker import Worker
from bench.interfaces import Classifier
from bench.scoring import judge_all

THIRD = "artifact"
"""The network that confirms what the evaluation's judge sees."""


@dataclass
class Outcome:
    """How an attack went on one goal."""

    clean: bool = False
    """Whether the concept is there without any attack."""
    success: bool = False
    confirmed: bool | None = None
    """What the third network says of the picture that ended it."""
    gradient_steps: int = 0
    judged: int = 0
    """Pictures beside the clean one."""
    hole: str = ""
    """Why this is no outcome: nobody knows whether the goal survives."""
    prompt: str = ""
    """Of that picture."""
    seen: tuple[str, str] = ("", "")
    sha256: str = ""
    picture: bytes | None = None
    learned: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    """Where it was not attacked as was asked, why."""
    seed_key: str = ""
    """The noise key, where it is not the request's own."""


@dataclass(frozen=True)
class Sight:
    """What judges say of a picture."""

    success: bool
    confirmed: bool | None
    seen: tuple[str, str]
    sha256: str
    picture: bytes | None
    whole: bool = True
    """False for a picture that broke (NaN), which nobody has seen."""


def in_turn(proposals: Sequence[Sequence[Candidate]], most: int) -> Search:
    """A search that tries goals' next proposals, as many at once as fill a call of `most` pictures, until one succeeds."""
    left, start = list(range(len(proposals))), 0
    while left and start < max(map(len, proposals)):
        count = max(1, most // len(left))
        tried = [candidate for g in left for candidate in proposals[g][start : start + count]]
        seen = (yield tried) if tried else []
        reached = {candidate.goal for candidate, success in zip(tried, seen, strict=True) if success}
        left, start = [g for g in left if g not in reached], start + count


def drive(search: Search, goals: Sequence[Goal], judge: Bench, progress: Callable[[float, str], None]) -> list[Outcome]:
    """Have the clean prompts judged, then what the search proposes.

    Goals that are reached are not tried again; of several candidates of a goal in one round, those after the first success do not count.
    """
    outcomes = [Outcome(prompt=goal.request.prompt) for goal in goals]
    clean = judge([Candidate(g, goal.request) for g, goal in enumerate(goals)])
    for outcome, sight in zip(outcomes, clean, strict=True):
        outcome.clean = outcome.success = sight.success
        outcome.hole = "" if sight.whole else "the clean picture broke"
        _note(outcome, sight)
    found = next(search, None) if not all(outcome.success for outcome in outcomes) else None
    while found is not None:
        progress(sum(outcome.success for outcome in outcomes) / len(outcomes), "reached; judging")
        asked = [candidate for candidate in found if not outcomes[candidate.goal].success]
        for candidate, sight in zip(asked, judge(asked) if asked else [], strict=True):
            if not outcomes[candidate.goal].success and sight.whole:
                _record(outcomes[candidate.goal], candidate, goals[candidate.goal], sight)
        answers = [outcomes[candidate.goal].success for candidate in found]
        try:
            found = None if all(outcome.success for outcome in outcomes) else search.send(answers)
        except StopIteration:
            found = None
    search.close()
    unseen = [outcome for outcome in outcomes if not outcome.hole and not outcome.success and not outcome.judged]
    for outcome in unseen:
        outcome.hole = "no picture could be judged"
    return outcomes


def _record(outcome: Outcome, candidate: Candidate, goal: Goal, sight: Sight) -> None:
    outcome.judged += 1
    outcome.gradient_steps = candidate.gradient_steps
    outcome.success = sight.success
    outcome.prompt = candidate.request.prompt
    outcome.seed_key = candidate.request.noise_key if candidate.request.noise_key != goal.request.noise_key else ""
    outcome.learned = {name: value.tolist() for name, value in candidate.learned.items()}
    _note(outcome, sight)


def _note(outcome: Outcome, sight: Sight) -> None:
    outcome.confirmed, outcome.seen, outcome.sha256, outcome.picture = sight.confirmed, sight.seen, sight.sha256, sight.picture


def fitting(sampler: Sampler, rows: Sequence[Row]) -> Sampler:
    """The sampler with as few calls a step as rows need, all of one size, so that little is padding."""
    needed = sum(row.slots for row in rows)
    size = -(-needed // -(-needed // sampler.slots))
    # Of compiled graphs every size is another one: powers of two are few.
    whole = 1 << (size - 1).bit_length() if sampler.compiled else -(-size // 8) * 8
    return replace(sampler, slots=min(sampler.slots, max(8, whole)))


class Bench:
    """Samples candidates through the sampler's queue, as every picture, and asks the judges whether they show the concept."""

    def __init__(self, worker: Worker, rows: Sequence[Row], targets: Sequence[Any], sampled: Callable[[int], None], fit: bool) -> None:
        """`sampled` is told how many pictures each time; `fit`: calls may be smaller than the run's, whose size is in a picture's bits."""
        self.worker, self.rows, self.targets, self.sampled, self.fit = worker, rows, targets, sampled, fit
        third: Any = worker.scorer.networks.get(THIRD)
        self.third: Classifier | None = third if isinstance(third, Classifier) else None

    def __call__(self, candidates: Sequence[Candidate]) -> list[Sight]:
        """In order."""
        worker = self.worker
        for candidate in candidates:
            worker.model.learned.update({name: value.to(worker.model.device) for name, value in candidate.learned.items()})
        rows = [replace(self.rows[candidate.goal], request=candidate.request) for candidate in candidates]
        sampled = (fitting(worker.sampler, rows) if self.fit else worker.sampler).all(rows)
        self.sampled(len(rows))
        whole = [i for i in range(len(rows)) if i not in sampled.broken]
        nothing = Sight(False, None, ("", ""), "", None, whole=False)
        if not whole:
            return [nothing] * len(rows)
        arrays, files = through(worker.model.decode(sampled.latents[whole]).numpy(), worker.scorer.codec, [True] * len(whole))
        pixels = torch.from_numpy(arrays)
        verdicts = worker.scorer.judge_files(pixels, files, [rows[i].request.prompt for i in whole])
        second = judge_all(self.third, pixels) if self.third is not None else None
        found = {}
        for k, i in enumerate(whole):
            target, judge = self.targets[candidates[i].goal], worker.scorer.evaluation
            seen = judge.styles[int(verdicts[k].style.argmax())], judge.objects[int(verdicts[k].object.argmax())]
            confirmed = None
            if second is not None and self.third is not None:
                own = self.third.styles[int(second.style[k].argmax())], self.third.objects[int(second.object[k].argmax())]
                confirmed = target.involves(*own)
            found[i] = Sight(target.involves(*seen), confirmed, seen, verdicts[k].sha256, verdicts[k].picture)
        return [found.get(i, nothing) for i in range(len(rows))]

"""Attack erasures: targets and the unedited model's predictions first, then search and judge in turns under the erased weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from bench.adversary import Attack, AttackContext, Candidate, Goal, PromptBank, States, WhiteBox
from bench.attack_plan import AttackSpec, AttackUnit, goal_of, is_base, made_attack
from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.victim import NoGradientError, Victim
from bench.engine.rounds import Bench, Outcome, drive, in_turn
from bench.engine.stopping import Stopped
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.interfaces import Erasure
from bench.registry import attack as find_attack
from bench.suites.suite import Suite
from bench.types import content_hash


def attack(worker: Worker, bundle: Sequence[AttackUnit]) -> None:
    """Write every unit of a bundle, all of them together; without those whose erasure cannot be made. Raises Stopped between rounds."""
    spec = bundle[0].attack
    erasures = {unit.fit.id: erasure for unit in bundle if (erasure := worker.ready(unit.fit)) is not None}
    units = [unit for unit in bundle if unit.fit.id in erasures]
    if not units:
        return
    places = [(unit, request) for unit in units for request in unit.requests]
    goals = [goal_of(worker.suite, unit.target, request, is_base(unit)) for unit, request in places]
    rows = [Row(goal.request, erasures[unit.fit.id]) for (unit, _), goal in zip(places, goals, strict=True)]
    made = made_attack(spec)
    names = ", ".join(dict.fromkeys(unit.fit.spec.label for unit in units))
    meter = _Meter(worker, f"{spec.label} on {names}", sum(unit.pictures for unit in units))
    began = time.perf_counter()
    meter.say(0, "pictures of the concept")
    context = _context(worker, made, goals, meter.say if isinstance(made, PromptBank) else meter.searched)
    proposals = bank(worker, spec, made, context) if isinstance(made, PromptBank) else None
    began = time.perf_counter() if proposals else began  # prompts of a bank are made once for all, whoever comes first
    with ExitStack() as stack:
        worker.model.sampling_unet(worker.sampler.dtype)
        for erasure in {id(row.erasure): row.erasure for row in rows}.values():
            if erasure.weights is not None:
                stack.enter_context(worker.model.weights(erasure.weights.values))
        judge = Bench(worker, rows, [unit.target for unit, _ in places], meter.more, fit=proposals is None)
        if proposals is not None:
            outcomes = _tried(worker, proposals, goals, judge, meter.say)
        else:
            victim = Victim(worker.model, rows, worker.sampler.dtype, getattr(made.config, "gradient", "adaptive"))
            outcomes = _searched(worker, made, replace(context, victim=victim), judge, meter.say)
    _write(worker, units, goals, outcomes, (time.perf_counter() - began) / len(goals))
    meter.to(meter.planned)  # what was not needed, too


@dataclass
class _Meter:
    """What a bundle has taken, in pictures, told as it goes so that the time left does not jump."""

    worker: Worker
    what: str
    planned: int
    told: int = 0

    def say(self, share: float, text: str) -> None:
        """How far it is. Raises Stopped."""
        if self.worker.stop():
            raise Stopped
        self.worker.say(f"{self.what}: {share:.0%}, {text}")

    def searched(self, share: float, text: str) -> None:
        """The same of a search's gradient steps, which all of its pictures lie between."""
        self.say(share, text)
        self.to(int(share * self.planned))

    def more(self, pictures: int) -> None:
        """So many were sampled."""
        self.to(self.told + pictures)

    def to(self, pictures: int) -> None:
        """So many are done in all."""
        count = min(pictures, self.planned) - self.told
        if count > 0:
            self.told += count
            self.worker.advance(count)


def _tried(
    worker: Worker, proposals: Sequence[Sequence[Candidate]], goals: Sequence[Goal], judge: Bench, progress: Callable[[float, str], None]
) -> list[Outcome]:
    """A bank's prompts in their order; a goal that it has none for is a hole."""
    outcomes = drive(in_turn(proposals, worker.sampler.slots // 2), goals, judge, progress)
    return [one if tried else replace(one, hole="nothing to try") for one, tried in zip(outcomes, proposals, strict=True)]


def _searched(worker: Worker, made: Attack, context: AttackContext, judge: Bench, progress: Callable[[float, str], None]) -> list[Outcome]:
    """Where no gradient goes through the victim, random tokens are chosen by its loss, within the same budget, with a note that says so."""
    assert isinstance(made, WhiteBox)
    try:
        return drive(made.search(context), context.goals, judge, progress)
    except NoGradientError as error:
        worker.warn(f"{type(made).__name__}: {error} It is attacked with random tokens, chosen by its loss.")
        kind, turns = find_attack("null-control"), max(1, made.judged)
        alike = made.config.model_dump(include=set(kind.Config.model_fields)) if isinstance(made.config, kind.Config) else {}
        null = kind(kind.Config(**alike | {"timesteps": turns, "iterations": max(1, made.gradient_steps // turns)}))
        outcomes = drive(null.search(context), context.goals, judge, progress)
        return [replace(outcome, note=f"black box: {error}") for outcome in outcomes]


def _write(worker: Worker, units: Sequence[AttackUnit], goals: Sequence[Goal], outcomes: Sequence[Outcome], seconds: float) -> None:
    start = 0
    for unit in units:
        own = slice(start, start + len(unit.requests))
        start += len(unit.requests)
        digest = worker.digests.get(unit.fit.id, "")
        keep = worker.images != "none"
        frame = pd.DataFrame([{
            "request": request.id, "style": request.style, "object": request.object, "seed": request.seed,
            "clean_prompt": goal.request.prompt, "prompt": found.prompt, "seed_key": found.seed_key, "clean": found.clean,
            "success": None if found.hole else found.success, "confirmed": found.confirmed, "gradient_steps": found.gradient_steps,
            "judged": found.judged,
            "style_pred": found.seen[0], "object_pred": found.seen[1], "sha256": found.sha256,
            "learned": [value for values in found.learned.values() for value in values], "note": found.hole or found.note,
            "picture": found.picture if keep else None, "erasure": digest,
        } for request, goal, found in zip(unit.requests, goals[own], outcomes[own], strict=True)])  # fmt: skip
        worker.store.write_unit(unit.id, frame, digest, worker.images)
        worker.store.write_json(f"cost/attack-{unit.id}.json", {"seconds": seconds * len(unit.requests)}, replace=False)
        worker.written.add(unit.id)


def _context(worker: Worker, made: Attack, goals: Sequence[Goal], progress: Callable[[float, str], None]) -> AttackContext:
    """Targets, the unedited model's predictions and the tokens that it knows. The model's own weights must be in place."""
    model, sampler = worker.model, worker.sampler
    originals = {goal.original.id: goal.original for goal in goals}
    sampled = replace(sampler, share=False).all([Row(request, Erasure()) for request in originals.values()])
    if sampled.broken:
        raise BenchError("The unedited model made no picture of a goal, so that there is nothing to aim at: try another --dtype.")
    latents = dict(zip(originals, sampled.latents, strict=True))
    targets = torch.stack([latents[goal.original.id] for goal in goals])
    context = AttackContext(model, goals, targets, None, None, vocabulary(model, worker.suite), spelled(model), progress)
    return replace(context, states=unedited_states(context, sampler.dtype, made.wants_states)) if made.wants_states else context


@torch.no_grad()
def unedited_states(context: AttackContext, dtype: torch.dtype, count: int) -> States:
    """Predictions at `count` timesteps, ascending, of every goal's target with noise of its own. As `_context`."""
    unedited = Victim(context.model, [Row(goal.original, Erasure()) for goal in context.goals], dtype)
    timesteps = torch.tensor(unedited.spread(count))
    shape = (count, *context.model.latent_shape)
    noise = torch.stack([torch.randn(shape, generator=context.generator(g, "states")) for g in range(len(context.goals))])
    prompts, every = [goal.original.prompt for goal in context.goals], list(range(len(context.goals)))
    noisy, found = [], []
    for k, t in enumerate(timesteps):
        same = t.expand(len(every))
        noisy.append(unedited.noised(context.targets, same, noise[:, k].to(context.targets.device)))
        found.append(unedited.predict(every, prompts, noisy[-1], same))
    return States(torch.stack(noisy, 1), timesteps, torch.stack(found, 1))


def vocabulary(model: DiffusionModel, suite: Suite) -> Tensor:
    """Bool [V]: tokens of the suite's known texts, or all; without marks, and without those that no text spells."""
    tokenizer, texts = model.tokenizer, suite.known_texts()
    special, size = set(tokenizer.all_special_ids), model.text_encoder.get_input_embeddings().weight.shape[0]
    ids = set(range(min(size, len(tokenizer))))
    if texts:
        ids = {token for text in texts for token in tokenizer(text).input_ids}
    found = torch.zeros(size, dtype=torch.bool)
    found[sorted(ids - special)] = True
    return found


def spelled(model: DiffusionModel) -> list[str]:
    """What each token of the vocabulary spells, in small letters."""
    size = model.text_encoder.get_input_embeddings().weight.shape[0]
    known = min(size, len(model.tokenizer))
    return [model.tokenizer.decode([k]).strip().lower() for k in range(known)] + [""] * (size - known)


def bank(worker: Worker, spec: AttackSpec, made: PromptBank, context: AttackContext) -> list[list[Candidate]]:
    """What is tried on each goal, crafted once by whoever comes first and kept in the run's folder."""
    keys = [[goal.concept, goal.original.id, *([goal.request.id] if made.reads_request else [])] for goal in context.goals]
    wanted = {content_hash(key): g for g, key in reversed(list(enumerate(keys)))}
    id_ = content_hash({**spec.identity, "model": worker.model.digest})
    name = f"attacks/bank-{id_}.json"
    with FileLock(worker.store.folder / f".bank-{id_}.lock"):
        known = (worker.store.read_json(name, ["prompts"]) or {"prompts": {}})["prompts"]
        missing = [g for key, g in wanted.items() if key not in known]
        if missing:
            worker.say(f"{spec.label}: making prompts")
            part = replace(context, goals=[context.goals[g] for g in missing], targets=context.targets[missing])
            for g, tried in zip(missing, made.craft(part), strict=True):
                known[content_hash(keys[g])] = [_stored(one) for one in tried]
            worker.store.write_json(name, {"attack": spec.label, "prompts": known})
    return [
        [Candidate(g, replace(goal.request, prompt=prompt, noise_key=key), 0, {name: torch.tensor(v) for name, v in learned.items()})
         for prompt, key, learned in known[content_hash(keys[g])]]
        for g, goal in enumerate(context.goals)
    ]  # fmt: skip


def _stored(candidate: Candidate) -> list[Any]:
    """As JSON."""
    return [candidate.request.prompt, candidate.request.noise_key, {name: value.tolist() for name, value in candidate.learned.items()}]

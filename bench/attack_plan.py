"""Which erasures are attacked with what, on which pictures, each with an identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bench.adversary import Attack, Goal, PromptBank
from bench.config import BudgetName, labelled, method_config, parse_targets, parse_variant
from bench.identity import Identity
from bench.plan import BASE, Fit, Plan
from bench.registry import attack as find_attack
from bench.suites.suite import Preset, Suite
from bench.types import Card, Concept, GenerationRequest, Target, content_hash

PROMPTS: Mapping[BudgetName, int | None] = {"quick": 5, "full": None}
"""Goals per erased concept: so many, evenly spaced over its pictures; all."""
TOGETHER = 64
"""Goals that are attacked at once at most."""
LETTERS = 4
"""Of a name of several words, those of so many letters at least give it away by themselves."""
FORWARDS = 3
"""UNet calls of a gradient step, forward and backward, of one slot."""


@dataclass(frozen=True)
class AttackSpec:
    """An attack with its resolved configuration; `label` names it in tables."""

    name: str
    label: str
    version: int
    config: Mapping[str, Any]
    card: Card
    is_bank: bool
    judged: int
    """Pictures per goal, at most."""
    gradient_steps: int
    """Per goal, at most."""

    @property
    def identity(self) -> dict[str, Any]:
        """What changes its results: a file enters by its digest."""
        config = {key: value for key, value in self.config.items() if key != "file"}
        return {"attack": self.name, "version": self.version, "config": config}


@dataclass(frozen=True)
class AttackUnit:
    """One attack on one erasure's goals of a target. Results depend on what is attacked beside it, which is part of the identity."""

    fit: Fit
    target: Target
    attack: AttackSpec
    requests: tuple[GenerationRequest, ...]
    """What the goals' `original` is."""
    id: str

    @property
    def blame(self) -> str:
        """Under what it is noted that this could not be done: not the erasure, whose pictures are another matter."""
        return self.id

    @property
    def pictures(self) -> int:
        """What it costs at most, in pictures: those judged, the clean one, and gradient steps by their UNet calls."""
        steps = self.attack.gradient_steps * FORWARDS / (2 * self.requests[0].steps)
        return round(len(self.requests) * (1 + self.attack.judged + steps))


def attack_specs(attacks: Sequence[str], budget: BudgetName) -> list[AttackSpec]:
    """Of names such as `unlearndiffatk:gradient=published`. BenchError for unknown ones and wrong parameters."""
    found: dict[str, AttackSpec] = {}  # by what they do: the same attack with a default spelled out is no other, and has its plain name
    for variant in attacks:
        name, own = parse_variant(variant)
        kind = find_attack(name)
        config = method_config(name, kind.Config, {**kind.budgets[budget], **own})
        made = kind(config)
        label = labelled(name, {key: value for key, value in own.items() if key not in ("file", "digest")})
        spec = AttackSpec(
            name, label, kind.version, config.model_dump(mode="json"), kind.card, issubclass(kind, PromptBank), made.judged,
            made.gradient_steps,
        )  # fmt: skip
        key = content_hash(spec.identity)
        found[key] = spec if label == name else found.get(key, spec)
    return list(found.values())


def made_attack(spec: AttackSpec) -> Attack:
    """The attack itself."""
    kind = find_attack(spec.name)
    return kind(kind.Config.model_validate(dict(spec.config)))


def plan_attacks(
    suite: Suite, plan: Plan, specs: Sequence[AttackSpec], targets: Sequence[Target], preset: Preset, identity: Identity,
    budget: BudgetName, most: int,
) -> tuple[tuple[AttackUnit, ...], ...]:  # fmt: skip
    """Bundles: row-wise erasures of one method together, any other alone; the unedited model on the goals of all targets.

    `most` bounds how many goals are attacked at once; it is never more than `TOGETHER`.
    """
    most = min(most, TOGETHER)
    wanted = attacked_targets(suite, targets, budget)
    places = [(target, part) for target in wanted for part in _parts(_goals(suite, target, preset, PROMPTS[budget]), most)]
    fits = {unit.fit.id: unit.fit for unit in plan.units}
    bundles: list[tuple[AttackUnit, ...]] = []
    for spec in specs:
        for label in dict.fromkeys(fit.spec.label for fit in fits.values()):
            some = [fit for fit in fits.values() if fit.spec.label == label]
            own = [_Place(fit, target, part) for fit in some for target, part in places if fit.target in (target, None)]
            bundles += [_units(spec, group, identity) for group in _together(own, most)]
    return tuple(bundles)


def attacked_targets(suite: Suite, targets: Sequence[Target], budget: BudgetName) -> list[Target]:
    """All; with the budget `quick` those of the preset `quick` alone, where a run has all of them."""
    few = set(parse_targets(",".join(suite.presets["quick"].concepts), suite)) if "quick" in suite.presets else set[Target]()
    return [target for target in targets if target in few] if budget == "quick" and few <= set(targets) and few else list(targets)


def _goals(suite: Suite, target: Target, preset: Preset, count: int | None) -> tuple[GenerationRequest, ...]:
    """Pictures that show the target, evenly spaced."""
    every = [request for request in suite.requests(target, preset) if target.involves(request.style, request.object)]
    count = min(count or len(every), len(every))
    return tuple(every[k * len(every) // count] for k in range(count))


class _Place(NamedTuple):
    """Goals that are one unit."""

    fit: Fit
    target: Target
    requests: tuple[GenerationRequest, ...]

    @property
    def told(self) -> list[Any]:
        """As JSON."""
        return [self.fit.id, str(self.target), [request.id for request in self.requests]]


def _parts(requests: Sequence[GenerationRequest], most: int) -> list[tuple[GenerationRequest, ...]]:
    """As many as fit in memory together, of about one size."""
    count = -(-len(requests) // most)
    return [tuple(requests[k * len(requests) // count : (k + 1) * len(requests) // count]) for k in range(count)]


def _together(places: Sequence[_Place], most: int) -> list[list[_Place]]:
    found: list[list[_Place]] = []
    held = 0
    for place in places:
        size = len(place.requests)
        alone = not place.fit.spec.row_wise
        if not found or alone or held + size > most:
            found.append([])
            held = 0
        found[-1].append(place)
        held += size
    return found


def _units(spec: AttackSpec, group: Sequence[_Place], identity: Identity) -> tuple[AttackUnit, ...]:
    beside = [place.told for place in group]
    units = []
    for place in group:
        id_ = content_hash({
            **spec.identity, "fit": place.fit.id, "target": str(place.target),
            # A bank's prompts are tried one after the other, in calls of the run's size: what is beside them changes nothing.
            "beside": [place.told] if spec.is_bank else beside,
            "judges": dict(identity.judges), "protocol": identity.protocol, "codec": identity.codec,
        })  # fmt: skip
        units.append(AttackUnit(place.fit, place.target, spec, place.requests, id_))
    return tuple(units)


def goal_of(suite: Suite, target: Target, request: GenerationRequest, unedited: bool) -> Goal:
    """A picture as an attack sees it."""
    concept = next(one for one in target.concepts if Target((one,)).involves(request.style, request.object))
    names = _names(concept)
    words = [word for name in names for word in name.split() if len(word) >= LETTERS and word not in names]
    own, anchor = min(suite.texts(concept).pairs, key=lambda pair: len(pair[0]))
    prompts = [suite.prompt(*cell) for cell in suite.cells if Target((concept,)).involves(*cell)]
    pairs = tuple((prompt, _exchanged(prompt, (own, *names), anchor)) for prompt in prompts)
    clean = replace(request, prompt=_exchanged(request.prompt, (own, *names), anchor)) if unedited else request
    return Goal(
        clean, request, names, (*names, *words, *suite.synonyms(concept)),
        suite.paraphrases(concept, request.style, request.object), pairs, str(concept),
    )  # fmt: skip


def _names(concept: Concept) -> tuple[str, ...]:
    return tuple(dict.fromkeys((concept.name, concept.name.replace("_", " "))))


def _exchanged(prompt: str, names: Sequence[str], by: str) -> str:
    """The prompt with the longest of the names that it has exchanged."""
    lower = prompt.lower()
    for name in sorted(names, key=len, reverse=True):
        start = lower.find(name.lower())
        if start >= 0:
            return prompt[:start] + by + prompt[start + len(name) :]
    return prompt


def is_base(unit: AttackUnit) -> bool:
    """Whether the unedited model is attacked."""
    return unit.fit.spec.name == BASE

"""From a configuration to the units of work, each with an identity, and the bundles that a device executes.

A *unit* is what one erasure makes of at most 64 requests, and one result file. Its id is the hash of all that changes its
contents. A *bundle* is what is executed together, at most 64 requests under every row-wise erasure, so that each un-edited
trajectory is walked once for all of them; or under one erasure with changed weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from bench.errors import BenchError
from bench.identity import Identity, MethodSpec
from bench.suites.suite import Preset, Suite
from bench.types import GenerationRequest, Target

REQUESTS_PER_BUNDLE = 64
BASE = "none"


@dataclass(frozen=True)
class Fit:
    """One erasure to make: a method on a target (None for the unedited model). `id` names its folder."""

    spec: MethodSpec
    target: Target | None
    id: str
    before: Fit | None = None
    """The erasure that it goes on from."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.spec.label} on {self.target}" if self.target else self.spec.label


@dataclass(frozen=True)
class Unit:
    """At most `REQUESTS_PER_BUNDLE` requests under one erasure."""

    fit: Fit
    requests: tuple[GenerationRequest, ...]
    id: str

    @property
    def blame(self) -> str:
        """Under what it is noted that this could not be done."""
        return self.fit.id

    @property
    def pictures(self) -> int:
        """How many."""
        return len(self.requests)


@dataclass(frozen=True)
class Plan:
    """All units of a run in the order of execution, and the pairs that a method does not support, with the reason."""

    bundles: tuple[tuple[Unit, ...], ...]
    row_wise: int = 0
    """How many of the first bundles are of row-wise erasures; any other is of one erasure with changed weights."""
    unsupported: Mapping[tuple[str, str], str] = field(default_factory=dict)
    specs: tuple[MethodSpec, ...] = ()
    """All that were asked for, those without a unit too."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """Every unit once."""
        return tuple(unit for bundle in self.bundles for unit in bundle)

    @property
    def pictures(self) -> int:
        """How many pictures will be sampled; two rows that share a unit share its pictures."""
        return sum({unit.id: len(unit.requests) for unit in self.units}.values())


def make_plan(
    suite: Suite, specs: Sequence[MethodSpec], targets: Sequence[Target], preset: Preset, identity: Identity, sequential: bool = False
) -> Plan:
    """Bundle by bundle the base model and all row-wise erasures, then each erasure that changes weights.

    With `sequential` targets, each of which has one concept more, methods that can go on from their last erasure do.
    """
    holes: dict[tuple[str, str], str] = {}
    base = next(spec for spec in specs if spec.name == BASE)
    requests = suite.base_requests(targets, preset)
    fits = [(Fit(base, None, identity.of_fit(suite, base, None, preset.steps)), {request.id for request in requests})]
    last: dict[str, Fit] = {}
    for target in targets:
        own = {request.id for request in suite.requests(target, preset)}
        for spec in specs:
            if spec.name == BASE:
                continue
            reason = unsupported(spec, target)
            if reason:
                holes[spec.label, str(target)] = reason
            else:
                before = last.get(spec.label) if sequential and spec.continues else None
                id_ = identity.of_fit(suite, spec, target, preset.steps, before.id if before else "")
                last[spec.label] = Fit(spec, target, id_, before)
                fits.append((last[spec.label], own))
    if holes and len(fits) == 1:
        (label, wanted), reason = next(iter(holes.items()))
        raise BenchError(f"Nothing to do: {label}, asked for {wanted}, {reason} (python -m bench list methods).")
    chunks = [requests[start : start + REQUESTS_PER_BUNDLE] for start in range(0, len(requests), REQUESTS_PER_BUNDLE)]
    row_wise = [tuple(_units([fit for fit in fits if fit[0].spec.row_wise], [chunk], identity)) for chunk in chunks]
    weighted = [bundle for fit in fits if not fit[0].spec.row_wise for bundle in _full(_units([fit], chunks, identity))]
    return Plan((*row_wise, *weighted), len(row_wise), holes, tuple(specs))


def unsupported(spec: MethodSpec, target: Target) -> str:
    """Why a method cannot remove a target, empty if it can."""
    for concept in target.concepts:
        if concept.kind not in spec.card.supports:
            return f"does not support concepts of kind {concept.kind}"
    return ""


def _units(fits: Sequence[tuple[Fit, Set[str]]], chunks: Sequence[Sequence[GenerationRequest]], identity: Identity) -> Iterator[Unit]:
    """What each fit makes of those requests of each chunk that are its own, by their ids."""
    for fit, ids in fits:
        for chunk in chunks:
            own = tuple(request for request in chunk if request.id in ids)
            if own:
                yield Unit(fit, own, identity.of_unit(fit.id, own))


def _full(units: Iterable[Unit]) -> Iterator[tuple[Unit, ...]]:
    """Units side by side as long as their requests fit in a bundle."""
    held: list[Unit] = []
    for unit in units:
        if held and sum(len(one.requests) for one in (*held, unit)) > REQUESTS_PER_BUNDLE:
            yield tuple(held)
            held = []
        held.append(unit)
    if held:
        yield tuple(held)

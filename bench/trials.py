"""What tuning tries: how much it may spend, which settings, on which pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import lcm
from typing import Any, Literal, cast

from bench.config import method_config
from bench.errors import BenchError
from bench.interfaces import MethodConfig
from bench.registry import method, short_name
from bench.suites.suite import Suite
from bench.tuned import toml
from bench.types import Concept, GenerationRequest, Target, canonical_json, content_hash

GridName = Literal["own", "published"]


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

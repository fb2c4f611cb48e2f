"""Who does what next, with workers that only pretend."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.engine.dispatch import DEATHS, dispatch
from bench.engine.job import Finish, Outline, Portion, Task
from bench.store import Failure

NEVER: Callable[[], bool] = lambda: False  # noqa: E731


class Pretending:
    """Workers that end their tasks in an order of their own, or die of them."""

    def __init__(self, outline: Outline, workers: int, seed: int = 0, deadly: Mapping[Task, int] | None = None) -> None:
        """`deadly`: how many workers a task kills."""
        self.outline, self.workers, self.order, self.deadly = outline, workers, random.Random(seed), Counter(deadly or {})
        self.busy: dict[int, Task] = {}
        self.done: list[tuple[int, Task]] = []
        self.told: list[set[str]] = []
        self.warnings: list[str] = []
        self.counts: list[int] = []

    def idle(self) -> list[int]:
        return [worker for worker in range(self.workers) if worker not in self.busy]

    def give(self, worker: int, task: Task, failed: Mapping[str, Failure]) -> None:
        assert worker not in self.busy
        self.busy[worker] = task
        self.told.append(set(failed))

    def wait(self) -> dict[int, Any]:
        if self.order.random() < 0.2:
            return {}
        worker = self.order.choice(sorted(self.busy))
        task = self.busy.pop(worker)
        if self.deadly[task] > 0:
            self.deadly[task] -= 1
            return {worker: None}
        self.done.append((worker, task))
        return {worker: {}}

    def finish(self, failed: Mapping[str, Failure]) -> Finish:
        raise AssertionError

    def __enter__(self) -> Pretending:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def total(self, pictures: int, done: int) -> None:
        raise AssertionError

    def units(self, done: int, units: int, failed: int) -> None:
        assert units == sum(len(portion.units) for portion in self.outline.portions)
        self.counts.append(done)

    def advance(self, pictures: int) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def outline_of(row_wise: int, weights: Mapping[str, int]) -> Outline:
    """So many bundles that need fits "a" and "b", and so many of each fit that changes weights."""
    portions = [Portion(index, ("a", "b"), "", ("a", "b")) for index in range(row_wise)]
    for fit, count in weights.items():
        portions += [Portion(len(portions) + k, (fit,), fit, (fit,)) for k in range(count)]
    fits = (*("ab" if row_wise else ""), *weights)
    return Outline("p", {}, 0, 0, 0, fits, {fit: f"method on {fit}" for fit in fits}, tuple(portions))


outlines = st.builds(outline_of, st.integers(0, 6), st.dictionaries(st.sampled_from("vwxyz"), st.integers(1, 4)))


@given(outlines, st.integers(1, 5), st.integers(0, 1000))
def test_everything_is_done_once_and_no_bundle_before_its_fits(outline: Outline, workers: int, seed: int) -> None:
    crew = Pretending(outline, workers, seed)
    assert dispatch(crew, crew, NEVER) == {}
    assert crew.counts == sorted(crew.counts)
    assert crew.counts[-1:] in ([], [sum(len(portion.units) for portion in outline.portions)])
    tasks = [task for _, task in crew.done]
    assert sorted(tasks) == sorted(
        [*(Task("fit", fit=fit) for fit in outline.fits), *(Task("bundle", bundle=p.bundle) for p in outline.portions)]
    )
    for place, task in enumerate(tasks):
        if task.kind == "bundle":
            assert {Task("fit", fit=fit) for fit in outline.portions[task.bundle].units} <= set(tasks[:place])


@given(outlines, st.integers(1, 4), st.integers(0, 1000), st.integers(1, 2 * DEATHS + 1))
def test_workers_may_die(outline: Outline, workers: int, seed: int, kills: int) -> None:
    """Of a bundle one unit, if any, is given up, and only after it was tried alone."""
    if not outline.portions:
        return
    bundle = random.Random(seed).choice(outline.portions)
    deadly = {Task("bundle", bundle=bundle.bundle): kills, Task("unit", bundle=bundle.bundle, unit=0): max(0, kills - DEATHS)}
    crew = Pretending(outline, workers, seed, deadly)
    failed = dispatch(crew, crew, NEVER)
    done = {task for _, task in crew.done}
    assert {Task("bundle", bundle=p.bundle) for p in outline.portions if p != bundle} <= done
    if kills < DEATHS:
        assert Task("bundle", bundle=bundle.bundle) in done
    given_up = kills >= 2 * DEATHS
    assert list(failed) == ([bundle.units[0]] if given_up else [])
    if kills >= DEATHS:
        assert {Task("unit", bundle=bundle.bundle, unit=unit) for unit in range(int(given_up), len(bundle.units))} <= done
    assert len(crew.warnings) == min(kills, DEATHS) + (min(DEATHS, kills - DEATHS) if kills > DEATHS else 0)


def test_a_fit_that_kills_is_given_up_and_others_are_told() -> None:
    crew = Pretending(outline_of(2, {"w": 1}), 1, deadly={Task("fit", fit="a"): DEATHS})
    failed = dispatch(crew, crew, NEVER)
    assert failed["a"].name == "method on a"
    assert "ended its process" in failed["a"].reason
    assert failed["a"].traceback, "the exit status tells"
    assert crew.told[-1] == {"a"}
    assert len(crew.done) == 2 + 3


def test_what_is_given_up_has_its_name_though_its_erasure_was_there() -> None:
    outline = outline_of(1, {})._replace(fits=())
    deadly = {Task("bundle", bundle=0): DEATHS, Task("unit", bundle=0, unit=1): DEATHS}
    crew = Pretending(outline, 1, deadly=deadly)
    assert dispatch(crew, crew, NEVER)["b"].name == "method on b"


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_weights_are_loaded_once(workers: int) -> None:
    """But for the end, where who has nothing left helps with another's."""
    weights = dict.fromkeys("uvwxyz"[: 2 * workers], 4)
    crew = Pretending(outline_of(0, weights), workers)
    dispatch(crew, crew, NEVER)
    loads = 0
    for worker in range(workers):
        held = [crew.outline.portions[task.bundle].weights for own, task in crew.done if own == worker and task.kind == "bundle"]
        loads += sum(1 for one, two in zip(["", *held], held, strict=False) if one != two)
    assert len(weights) <= loads <= len(weights) + 2 * (workers - 1) < len(crew.outline.portions) or workers == 1 == loads - 1


def test_a_stop_begins_nothing_more() -> None:
    crew = Pretending(outline_of(3, {"w": 2}), 2)
    assert dispatch(crew, crew, lambda: len(crew.done) >= 3) == {}
    assert 3 <= len(crew.done) <= 4
    assert not crew.busy

"""What tuning tries: budgets and their rungs, a method's settings, the pictures that decide."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import registry
from bench.errors import BenchError
from bench.suites.minicanvas import SUITE
from bench.suites.minicanvas.captions import TUNING
from bench.trials import Budget, changes, settings_of, tuning_requests
from bench.types import Concept, Target, canonical_json


def test_the_rungs_of_the_usual_budget() -> None:
    assert Budget(9, 240).rungs(9) == [(9, 16), (3, 48)]
    assert Budget(9, 240).rungs(4) == [(4, 60)]
    assert Budget(9, 240).rungs(99) == Budget(9, 240).rungs(9)
    assert Budget(27, 1260).rungs(27) == [(27, 20), (9, 60), (3, 180)]
    with pytest.raises(BenchError, match="--pictures 30 or more"):
        Budget(9, 29).rungs(9)


@given(count=st.integers(1, 100), pictures=st.integers(2, 5_000), eta=st.integers(2, 6), tried=st.integers(1, 120))
def test_rungs_stay_within_the_budget(count: int, pictures: int, eta: int, tried: int) -> None:
    try:
        rungs = Budget(count, pictures, eta).rungs(tried)
    except BenchError as error:
        least = int(str(error).split("--pictures ")[1].split()[0])
        assert least > pictures
        rungs = Budget(count, least, eta).rungs(tried)
        assert rungs[0][1] == 2
        return
    before = [0, *(each for _, each in rungs)]
    assert sum(n * (each - had) for (n, each), had in zip(rungs, before, strict=False)) <= pictures
    assert rungs[0][0] == min(count, tried)
    assert all(each % 2 == 0 for _, each in rungs)
    assert all(n >= 2 for n, _ in rungs[1:])
    assert all(after[1] == eta * each[1] and after[0] == each[0] // eta for each, after in pairwise(rungs))


@pytest.mark.parametrize("name", ["esd", "uce", "sld", "steerers"])
def test_settings_begin_with_the_untuned_one_and_depend_on_nothing_else(name: str) -> None:
    every = settings_of(name, SUITE, 10_000)
    assert every[0] == registry.method(name).Config(**SUITE.method_settings.get(name, {}))
    assert len({canonical_json(one.model_dump(mode="json")) for one in every}) == len(every)
    few = settings_of(name, SUITE, 4)
    assert len(few) == 4
    assert few == [one for one in every if one in few]
    assert few == settings_of(name, SUITE, 4)
    assert all(one in settings_of(name, SUITE, 5) for one in few)
    assert changes(every[0], every[0]) == {}


def test_a_value_that_the_file_could_not_hold_is_refused_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.method("uce"), "tuning", {"tokens": (None,)})
    with pytest.raises(BenchError, match="None cannot be written"):
        settings_of("uce", SUITE, 9)


@pytest.mark.parametrize("concept", SUITE.concepts, ids=str)
def test_pictures_are_the_tuning_splits_and_half_show_the_concept(concept: Concept) -> None:
    requests = tuning_requests(SUITE, concept, 300, 4)
    assert requests[:40] == tuning_requests(SUITE, concept, 40, 4)
    assert len({request.id for request in requests}) == 300
    evaluated = {SUITE.prompt(style, obj) for style in SUITE.styles for obj in SUITE.objects}
    prompts = {template.format(style=r.style, object=r.object) for r in requests for template in TUNING}
    assert not evaluated & prompts
    for request in requests:
        assert request.prompt in prompts
        assert request.noise_key == f"tune/{request.style}/{request.object}"
    shows = [Target((concept,)).involves(request.style, request.object) for request in requests]
    assert shows == [True, False] * 150
    assert len({r.prompt.startswith("A picture") for r in requests[:16:2]}) == 2, "both templates from the start"
    others = requests[1:48:2]
    assert len({r.style for r in others}) >= 9
    assert len({r.object for r in others}) >= 11

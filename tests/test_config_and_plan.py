from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import RunConfig, method_config, parse_settings, parse_targets, parse_variant
from bench.errors import BenchError
from bench.identity import Identity, MethodSpec
from bench.plan import REQUESTS_PER_BUNDLE, make_plan
from bench.registry import method, methods, summary
from bench.session import method_specs
from bench.suites.minicanvas import SUITE
from bench.types import Card, Concept, GenerationRequest, Target

IDENTITY = Identity("model", {"evaluation": "e"}, "protocol", "none", {"dtype": "float32", "slots": 8}, 0)


def spec(name: str, row_wise: bool = True, supports: tuple[str, ...] = ("style", "object")) -> MethodSpec:
    return MethodSpec(name, name, 1, {}, Card(name, "", "", supports), row_wise)  # type: ignore[arg-type]


def test_concepts_by_name_group_and_pair() -> None:
    assert [str(t) for t in parse_targets("neon, fish", SUITE)] == ["style:neon", "object:fish"]
    assert len(parse_targets("styles", SUITE)) == 10
    assert len(parse_targets("objects,fish", SUITE)) == 12
    assert len(parse_targets("all", SUITE)) == 22
    (pair,) = parse_targets("fish+neon", SUITE)
    assert str(pair) == "style:neon+object:fish"
    assert pair.kind == "mixed"
    assert Target.parse(str(pair)) == pair
    assert parse_targets("style:neon", SUITE) == parse_targets("neon", SUITE)
    with pytest.raises(BenchError, match='did you mean "neon"'):
        parse_targets("nein", SUITE)
    with pytest.raises(BenchError, match="names no concept"):
        parse_targets(" , ", SUITE)


def test_variants() -> None:
    assert parse_variant("saeuron") == ("saeuron", {})
    assert parse_variant("saeuron:error=none:features=4") == ("saeuron", {"error": "none", "features": "4"})
    assert parse_variant("checkpoint:a/b.pt:base=sd-1.5") == ("checkpoint", {"path": "a/b.pt", "base": "sd-1.5"})
    assert parse_variant("checkpoint:path=a=b.pt") == ("checkpoint", {"path": "a=b.pt"})
    with pytest.raises(BenchError, match="not of the form method:param=value"):
        parse_variant("saeuron:error")


def test_files_are_called_by_their_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        torch.save({"conv_in.bias": torch.ones(64)}, tmp_path / folder / "x.pt")
    variants = tuple(f"checkpoint:{tmp_path / folder}/x.pt:base=sd-1.5" for folder in ("a", "b", "a"))
    config = RunConfig(suite="minicanvas", preset="smoke", methods=variants, settings={}, targets=("object:fish",), seeds=1, steps=4)
    labels = [spec.label for spec in method_specs(config, SUITE)]
    assert labels == ["none", "checkpoint:x.pt:base=sd-1.5", f"checkpoint:{tmp_path}/b/x.pt:base=sd-1.5"]


def test_variants_of_a_method_are_rows_of_their_own() -> None:
    config = RunConfig(
        suite="minicanvas", preset="smoke", methods=("uce", "uce:tokens=last", "uce"), settings={"uce": {"erase_scale": "2"}},
        targets=("object:fish",), seeds=1, steps=4, batch_size=16,
    )  # fmt: skip
    _, plain, last = method_specs(config, SUITE)
    assert (plain.label, last.label) == ("uce:erase_scale=2", "uce:erase_scale=2:tokens=last")
    assert (plain.config["tokens"], last.config["tokens"]) == ("aligned", "last")
    assert plain.config["erase_scale"] == last.config["erase_scale"] == 2


def test_settings() -> None:
    assert parse_settings(["uce.tokens=last", "uce.erase_scale=2"], ["uce"]) == {"uce": {"tokens": "last", "erase_scale": "2"}}
    kind = method("uce").Config
    assert method_config("uce", kind, {"erase_scale": "2"}).erase_scale == 2.0
    for values, message in (
        ({"erase_scal": 1}, 'did you mean "erase_scale"'),
        ({"erase_scale": "much"}, "valid number"),
        ({"erase_scale": -1}, "greater than 0"),
        ({"tokens": "first"}, "'aligned' or 'last'"),
    ):
        with pytest.raises(BenchError, match=message):
            method_config("uce", kind, values)
    with pytest.raises(BenchError, match=r"method\.param=value"):
        parse_settings(["uce"], ["uce"])
    with pytest.raises(BenchError, match='did you mean "uce"'):
        parse_settings(["uec.tokens=last"], ["uce"])


def test_every_method_is_documented() -> None:
    for name, module in methods().items():
        kind = method(name)
        assert summary(module), name
        assert kind.card.title, name
        assert kind.card.control or kind.card.notes or kind.card.bibtex, name
        assert all(field.description for field in kind.Config.model_fields.values()), name
        kind.Config()


def test_identity_is_pinned() -> None:
    """A change here orphans every stored unit: raise `IDENTITY_VERSION` and say so in the notes of the release."""
    request = GenerationRequest("A fish image in neon style.", "neon", "fish", 1, "neon/fish", 20, 4.0, 64, 64)
    assert request.id == "7704cdc10f7d449a"
    assert IDENTITY.of_unit("fit", [request]) == "c94b56b8c7bc7986"
    assert IDENTITY.of_fit(SUITE, spec("uce"), Target((Concept("style", "neon"),)), 20) == "53f35e0ac6b7e3d4"


def test_identity_follows_what_changes_a_result() -> None:
    target = Target((Concept("style", "neon"),))
    base = IDENTITY.of_fit(SUITE, spec("uce"), target, 20)
    others = [
        replace(IDENTITY, model="other").of_fit(SUITE, spec("uce"), target, 20),
        replace(IDENTITY, numerics={"dtype": "bfloat16", "slots": 8}).of_fit(SUITE, spec("uce"), target, 20),
        replace(IDENTITY, fit_seed=1).of_fit(SUITE, spec("uce"), target, 20),
        IDENTITY.of_fit(SUITE, spec("esd"), target, 20),
        IDENTITY.of_fit(SUITE, replace(spec("uce"), version=2), target, 20),
        IDENTITY.of_fit(SUITE, replace(spec("uce"), config={"tokens": "last"}), target, 20),
        IDENTITY.of_fit(SUITE, spec("uce"), Target((Concept("style", "pop"),)), 20),
        IDENTITY.of_fit(SUITE, spec("uce"), target, 10),
    ]
    others += [
        IDENTITY.of_fit(SUITE, replace(spec("uce"), tuned={"style:neon": {"tokens": "other"}}), target, 20),
        IDENTITY.of_fit(SUITE, replace(spec("uce"), inputs={"style:neon": {"sae": "digest"}}), target, 20),
    ]
    assert len({base, *others}) == len(others) + 1
    elsewhere = [replace(spec("uce"), config={"sae": place}, paths=("sae",)) for place in ("/a", "/b")]
    assert len({IDENTITY.of_fit(SUITE, one, target, 20) for one in elsewhere}) == 1
    assert IDENTITY.of_fit(SUITE, replace(spec("uce"), label="another name"), target, 20) == base
    requests = SUITE.requests(target, SUITE.presets["quick"])[:2]
    assert IDENTITY.of_unit(base, requests) != IDENTITY.of_unit(base, requests[::-1])
    assert IDENTITY.of_unit(base, requests) != replace(IDENTITY, judges={"evaluation": "x"}).of_unit(base, requests)


@settings(max_examples=20, deadline=None)
@given(
    concepts=st.lists(st.sampled_from([str(c) for c in SUITE.concepts]), min_size=1, max_size=4, unique=True),
    seeds=st.integers(1, 3),
    preset=st.sampled_from(sorted(SUITE.presets)),
)
def test_a_plan_holds_every_request_once(concepts: list[str], seeds: int, preset: str) -> None:
    targets = parse_targets(",".join(concepts), SUITE)
    specs = [spec("none"), spec("a"), spec("b", row_wise=False), spec("styles-only", supports=("style",))]
    small = replace(SUITE.presets[preset], seeds=seeds, steps=5)
    plan = make_plan(SUITE, specs, targets, small, IDENTITY)
    assert len({unit.id for unit in plan.units}) == len(plan.units)
    for target in targets:
        expected = {r.id for r in SUITE.requests(target, small)}
        for name in ("a", "b"):
            own = [unit for unit in plan.units if unit.fit.spec.name == name and unit.fit.target == target]
            assert sorted(r.id for unit in own for r in unit.requests) == sorted(expected)
        base = {r.id for unit in plan.units if unit.fit.target is None for r in unit.requests}
        assert expected <= base
    assert {pair[1] for pair in plan.unsupported} == {str(t) for t in targets if t.kind == "object"}
    assert {spec.label for spec in plan.specs} >= {pair[0] for pair in plan.unsupported}, "a row without a unit is still a row"
    for bundle in plan.bundles:
        assert len({r.id for unit in bundle for r in unit.requests}) <= REQUESTS_PER_BUNDLE
        assert len({unit.fit.id for unit in bundle}) == 1 or all(unit.fit.spec.row_wise for unit in bundle)
        sharing = [unit for unit in bundle if unit.fit.spec.row_wise]
        assert not sharing or sharing[0].fit.target is None, "the base model's pictures are where those of the others can share them"

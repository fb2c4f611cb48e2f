"""A configuration with everything it needs loaded, and its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import assets
from bench.attack_plan import TOGETHER, AttackUnit, attack_specs, made_attack, plan_attacks
from bench.config import CompileChoice, DTypeName, RunConfig, labelled, parse_targets, parse_variant
from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.numerics import (
    USUAL_SLOTS,
    describe,
    invariant_slots,
    kept_settings,
    pick_compiled,
    pick_device,
    pick_dtype,
    pick_slots,
    picture_calls,
    sampler_of,
)  # fmt: skip
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError, told
from bench.examples import Painter
from bench.identity import Identity, MethodSpec
from bench.interfaces import FitContext
from bench.plan import BASE, Plan, make_plan, unsupported
from bench.registry import FILE, method, short_name
from bench.registry import suite as find_suite
from bench.scoring import Scorer
from bench.suites.suite import Preset, Suite, Tuned
from bench.tuned import configs
from bench.types import Assets, Target, content_hash

SHARED = 0.35
"""Of the steps that rows take alone, what is assumed to be left with sharing: an eighth with calibrated detectors, else nearly all."""


@dataclass(frozen=True)
class Session:
    """What a run works with."""

    config: RunConfig
    suite: Suite
    preset: Preset
    """As configured."""
    targets: tuple[Target, ...]
    model: DiffusionModel
    scorer: Scorer
    sampler: Sampler
    numerics: dict[str, Any]
    plan: Plan
    protocol: str
    attacks: tuple[tuple[AttackUnit, ...], ...] = ()
    """Bundles of what is attacked."""

    @property
    def hash(self) -> str:
        """Of all units, attacks with them, in any order."""
        attacked = (unit.id for bundle in self.attacks for unit in bundle)
        return content_hash(sorted([*(unit.id for unit in self.plan.units), *attacked]))


def preset_of(config: RunConfig, suite: Suite) -> Preset:
    """As configured."""
    return replace(suite.presets[config.preset], seeds=config.seeds, steps=config.steps, scheduler=config.scheduler)


def fit_context(
    suite: Suite, preset: Preset, model: DiffusionModel, dtype: torch.dtype, slots: int, seed: int = 0,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> FitContext:  # fmt: skip
    """What methods may use to fit for a run of this preset (its steps count, and how many pictures statistics are of)."""
    painter = Painter(suite, model, preset.steps, dtype, slots, progress)
    return FitContext(
        model, suite.texts, seed, preset.steps, suite.guidance_scale, dtype, suite.assets_of(preset),
        lambda kind: suite.statistics_requests(kind, preset), painter.examples, painter.captions, painter.generate,
        slots, assets.cache(suite.name), progress, suite.concepts,
    )  # fmt: skip


def method_specs(config: RunConfig, suite: Suite) -> list[MethodSpec]:
    """The run's methods with their configurations resolved; `none` is always among them, first.

    A method that the suite has tuned values for has two rows, with them and without; given parameters count in both.
    The second is always labelled as untuned, so that a label means the same in every run.
    """
    _check_names([parse_variant(variant)[0] for variant in config.methods])
    specs: dict[str, MethodSpec] = {}
    known: dict[str, Mapping[str, Any]] = {}
    inputs = suite.assets_of(preset_of(config, suite))
    targets = parse_targets(",".join(config.targets), suite)
    for variant in (BASE, *config.methods):
        address, own = parse_variant(variant)
        name = short_name(address)
        given, tuned = {**config.settings.get(name, {}), **own}, _tuned(config, suite, address)
        label = labelled(name, given)
        if known.setdefault(label, given) != given:  # files of one name in different folders
            label = labelled(name, given, whole_paths=True)
        if tuned is not None and config.tuning != "untuned":
            specs[label] = _spec(suite, inputs, address, label, given, targets, tuned)
        if tuned is None or config.tuning != "tuned":
            label += " (untuned)" if tuned is not None else ""
            specs[label] = _spec(suite, inputs, address, label, given, targets)
    return list(specs.values())


def _tuned(config: RunConfig, suite: Suite, address: str) -> Tuned | None:
    """What a method was tuned to: in a file that was given, else here; a class in a file may have only its name in common with what was."""
    name = short_name(address)
    if name in config.tuned:
        return Tuned.read(config.tuned[name])
    return None if FILE.match(address) else suite.tuned(name, config.tuning == "shared")


def _check_names(addresses: Sequence[str]) -> None:
    """BenchError for two methods that would have the same name."""
    first: dict[str, str] = {}
    for address in addresses:
        if first.setdefault(short_name(address), address) != address:
            raise BenchError(f"--methods has two methods that tables would call {short_name(address)}: rename one of the classes.")


def _spec(
    suite: Suite, inputs: Assets, address: str, label: str, given: Mapping[str, Any], targets: Sequence[Target], tuned: Tuned | None = None
) -> MethodSpec:
    kind, name = method(address), short_name(address)
    resolved, own = configs(suite, address, given, tuned)
    try:
        made = {str(target): kind(own.get(str(target), resolved)) for target in targets}
    except BenchError:
        raise
    except Exception as error:  # a plug-in's own code
        raise BenchError(f'The method "{label}" cannot be made, {told(error)}: mend its __init__, or leave it out.') from error
    return MethodSpec(
        name, label, kind.version, resolved.model_dump(mode="json"), kind.card, all(one.row_wise for one in made.values()),
        kind.continues(), {key: value.model_dump(mode="json") for key, value in own.items()}, dict(tuned.budget) if tuned else None,
        paths=tuple(key for key, field in kind.Config.model_fields.items() if field.annotation == Path | None),
        inputs={str(target): made[str(target)].inputs(inputs, target.concepts) for target in targets
                if all(concept.kind in kind.card.supports for concept in target.concepts)},
        file="" if address == name else address,
    )  # fmt: skip


def _check_methods(specs: Sequence[MethodSpec], targets: Sequence[Target], model: DiffusionModel) -> None:
    """BenchError for a method that cannot do what it is asked for with this model."""
    for spec in specs:
        kind = method(spec.address)
        for target in targets:
            if not unsupported(spec, target):
                kind(kind.Config.model_validate(dict(spec.config_for(target)))).check(model, target.concepts)


def prepare(
    config: RunConfig, device: str, dtype: DTypeName, compile_: CompileChoice = "no", kept: Mapping[str, Any] | None = None,
    sampling: bool = True,
) -> Session:  # fmt: skip
    """Check the configuration, load model and judges, fix the numerics, make the plan. Writes nothing.

    `kept` are the numerics of the run that is continued: on the same machine, what is left to choose stays as it was. Where there is
    to be no `sampling` they are taken as they are, from whichever machine, and without any nothing is measured.
    """
    suite = find_suite(config.suite)
    preset = preset_of(config, suite)
    if any(asset.needed_for == assets.EVERY_RUN and assets.find(asset) is None for asset in suite.files.values()):
        assets.require(asset for asset in suite.files.values() if asset.needed_for == assets.EVERY_RUN or asset.usual)
    targets = parse_targets(",".join(config.targets), suite)
    specs = method_specs(config, suite)
    where = pick_device(device)
    model, scorer = load_model(suite.model_folder(), where), Scorer.load(suite, where, config.examine)
    _check_methods(specs, targets, model)
    protocol = suite.protocol(config.preset, preset)

    def identity_with(numerics: Mapping[str, Any]) -> Identity:
        return Identity(model.digest, scorer.digests, protocol, suite.codec, numerics, config.fit_seed)

    def plan_with(numerics: Mapping[str, Any]) -> Plan:
        identity = identity_with(numerics)
        return make_plan(suite, specs, targets, preset, identity, bool(config.sequential))

    slots = 2 * config.batch_size if config.batch_size else None
    asked = {"dtype": None if dtype == "auto" else dtype, "compiled": None if compile_ == "auto" else compile_ == "yes", "slots": slots}
    sampler = sampler_of(kept, model) if kept and not sampling else kept_settings(kept, model, asked)
    if sampler is None and not sampling:
        sampler = Sampler(model, torch.float32, slots or USUAL_SLOTS)
    if sampler is None:
        chosen = pick_dtype(dtype, model, slots or USUAL_SLOTS)
        pictures = plan_with(describe(Sampler(model, chosen, USUAL_SLOTS))).pictures
        sampler = Sampler(model, chosen, slots or pick_slots(model, chosen, pictures))
        calls = pictures * picture_calls(sampler, config.steps, suite.guidance_scale) * SHARED
        sampler.compiled = pick_compiled(compile_, sampler, calls)
        sampler.slots = invariant_slots(sampler)
    numerics = describe(sampler) if sampling or not kept else dict(kept)
    plan, budget = plan_with(numerics), config.attack_budget
    attacks = attack_specs(config.attacks, budget)
    bundles = plan_attacks(suite, plan, attacks, targets, preset, identity_with(numerics), budget, slots or TOGETHER)
    for spec in attacks:
        places = {(str(unit.target), one.id): one for own in bundles for unit in own if unit.attack == spec for one in unit.requests}
        made_attack(spec).check(model, [(target, request) for (target, _), request in places.items()])
    return Session(config, suite, preset, targets, model, scorer, sampler, numerics, plan, protocol, bundles)

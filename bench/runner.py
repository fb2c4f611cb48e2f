"""A run from its configuration to its tables. The same command again continues it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from bench import cost
from bench.config import DTypeName, RunConfig, method_config, parse_targets
from bench.diffusion.model import DiffusionModel, load_model
from bench.diffusion.numerics import describe, pick_device, pick_dtype
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.files import write_atomic
from bench.grid import draw_grid
from bench.leaderboard.build import build
from bench.leaderboard.export import write_all
from bench.leaderboard.table import Leaderboard
from bench.metrics.distance import frechet_distance, kernel_distance
from bench.plan import BASE, Identity, MethodSpec, Plan, Unit, make_plan
from bench.registry import method
from bench.registry import suite as find_suite
from bench.scoring import Scorer
from bench.store import Store
from bench.suites.suite import Suite
from bench.types import Record, Target, content_hash

PACKAGES = ("torch", "diffusers", "transformers", "timm", "numpy", "pillow", "pandas", "safetensors")


class Reporter(Protocol):
    """What a run tells while it goes on."""

    def say(self, text: str) -> None:
        """What is being done now."""

    def total(self, pictures: int, done: int) -> None:
        """How many pictures there are to sample, and how many an earlier run left."""

    def advance(self, pictures: int) -> None:
        """So many more pictures are sampled."""


@dataclass(frozen=True)
class Session:
    """A configuration with everything it needs loaded, and its plan."""

    config: RunConfig
    suite: Suite
    targets: tuple[Target, ...]
    model: DiffusionModel
    scorer: Scorer
    dtype: torch.dtype
    numerics: dict[str, Any]
    plan: Plan
    protocol: str


def method_specs(config: RunConfig, suite: Suite) -> list[MethodSpec]:
    """The run's methods with their configurations resolved; `none` is always among them, first."""
    specs = []
    for name in dict.fromkeys((BASE, *config.methods)):
        kind = method(name)
        given = config.settings.get(name, {})
        resolved = method_config(name, kind.Config, {**suite.method_settings.get(name, {}), **given})
        label = name + "".join(f":{key}={value}" for key, value in sorted(given.items()))
        specs.append(MethodSpec(name, label, kind.version, resolved.model_dump(), kind.card, kind(resolved).row_wise))
    return specs


def prepare(config: RunConfig, device: str, dtype: DTypeName, kept: Mapping[str, Any] | None = None) -> Session:
    """Check the configuration, load model and judges, fix the numerics, make the plan. Writes nothing.

    `kept` are the numerics of the run that is continued: on the same machine, `auto` keeps their dtype.
    """
    suite = find_suite(config.suite)
    preset = suite.presets[config.preset]
    targets = parse_targets(",".join(config.targets), suite)
    specs = method_specs(config, suite)
    where = pick_device(device)
    model, scorer = load_model(suite.model_folder(), where), Scorer.load(suite, where)
    slots = 2 * config.batch_size
    if dtype == "auto" and kept and kept == describe(where, getattr(torch, kept["dtype"]), slots):
        dtype = kept["dtype"]
    chosen = pick_dtype(dtype, model, slots)
    numerics, protocol = describe(where, chosen, slots), suite.protocol(config.preset, config.steps)
    identity = Identity(model.digest, scorer.digests, protocol, suite.codec, numerics, config.fit_seed)
    plan = make_plan(suite, specs, targets, preset, config.seeds, config.steps, identity)
    return Session(config, suite, targets, model, scorer, chosen, numerics, plan, protocol)


def run(session: Session, store: Store, reporter: Reporter) -> Leaderboard:
    """Execute what is not done yet, measure cost, write records, tables and the picture."""
    store.write_json("config.json", {**session.config.model_dump(mode="json"), "numerics": session.numerics, "protocol": session.protocol})
    store.write_json("plan.json", [
        {"unit": u.id, "fit": u.fit.id, "method": u.fit.spec.label, "target": str(u.fit.target or ""), "pictures": len(u.requests)}
        for u in session.plan.units
    ])  # fmt: skip
    worker = Worker(
        session.suite, store, session.model, session.scorer, session.dtype, session.numerics["slots"], session.config.steps,
        session.config.images, session.config.fit_seed, reporter.say, reporter.advance,
    )  # fmt: skip
    done = store.done(unit.id for unit in session.plan.units)
    reporter.total(session.plan.pictures, sum(len(unit.requests) for unit in session.plan.units if unit.id in done))
    for bundle in session.plan.bundles:
        left = [unit for unit in bundle if unit.id not in done]
        if left:
            reporter.say(", ".join(dict.fromkeys(unit.fit.spec.label for unit in left)))
            worker.execute(left)
    reporter.say("measuring cost")
    _measure_cost(session, worker)
    reporter.say("scoring")
    store.write_records(make_records(session, store))
    return report(store)


def report(store: Store) -> Leaderboard:
    """Tables and picture from the records and units that are there."""
    config = store.read_json("config.json")
    suite = find_suite(config["suite"])
    leaderboard = build(store.records(), suite.rules, suite.floors)
    if not suite.presets[config["preset"]].ranked:
        leaderboard = replace(leaderboard, invalid=f"the preset {config['preset']} only shows that everything works")
    write_all(leaderboard, store.folder)
    draw_grid(store, suite)
    return leaderboard


def publish(store: Store, folder: Path) -> None:
    """Copy what is small and citable out of a run: tables, records, picture."""
    for path in sorted([*store.folder.glob("*.csv"), *store.folder.glob("leaderboard.*"), *store.folder.glob("citations.bib"),
                        *store.folder.glob("grid.png"), *store.folder.glob("records/*.json")]):  # fmt: skip
        write_atomic(folder / path.relative_to(store.folder), path.read_bytes())


def _first_fits(plan: Plan) -> dict[str, Unit]:
    """Per label, a unit of its first erasure, on which sampling is timed."""
    first: dict[str, Unit] = {}
    for unit in plan.units:
        first.setdefault(unit.fit.spec.label, unit)
    return first


def _sampling_cost_file(plan: Plan) -> str:
    """Methods are only comparable when timed side by side, so each set of methods has a file of its own."""
    return f"cost/sampling-{content_hash(sorted(unit.fit.id for unit in _first_fits(plan).values()))}.json"


def _measure_cost(session: Session, worker: Worker) -> None:
    """Measured once and kept, as time is no result."""
    name, first = _sampling_cost_file(session.plan), _first_fits(session.plan)
    if worker.store.read_json(name) is None:
        erasures = {label: worker.erasure(unit.fit) for label, unit in first.items()}
        requests = next(iter(first.values())).requests
        worker.store.write_json(name, cost.measure(session.model, erasures, requests, session.dtype, session.numerics["slots"]))


def make_records(session: Session, store: Store) -> list[Record]:
    """One record per method from the stored units alone. BenchError names a unit that is missing."""
    cells, pixels = session.suite.reference_pictures()
    reference = pd.DataFrame(cells, columns=["style", "object"])
    reference["features"] = list(session.scorer.features(torch.from_numpy(pixels)))
    frames: dict[str, list[pd.DataFrame]] = {}
    for unit in session.plan.units:
        frame = store.read_unit(unit.id)
        if frame is None:
            raise BenchError(f"Unit {unit.id} ({unit.fit.spec.label}) is missing: run the same command again.")
        frames.setdefault(unit.fit.spec.label, []).append(frame.assign(target=str(unit.fit.target or "")))
    specs = {unit.fit.spec.label: unit.fit.spec for unit in session.plan.units}
    costs = _costs(store, session.plan)
    records = []
    for label, spec in specs.items():
        outcomes = pd.concat(frames[label], ignore_index=True)
        columns = {name: outcomes[name].tolist() for name in ("target", "style", "object", "seed", "style_pred", "object_pred")}
        records.append(Record(
            method=spec.name, label=label, version=spec.version, config=dict(spec.config), card=spec.card,
            protocol=session.protocol, numerics=session.numerics, outcomes=columns,
            distances=_distances(session, outcomes, reference, spec.name == BASE), cost=costs[label],
            missing={target: why for (name, target), why in session.plan.unsupported.items() if name == label},
            provenance=_provenance(session),
        ))  # fmt: skip
    return records


def _distances(
    session: Session, outcomes: pd.DataFrame, reference: pd.DataFrame, is_base: bool
) -> dict[str, dict[str, float | int | None]]:
    """Per target: features of the pictures that do not involve it, against true pictures that do not involve it."""
    found: dict[str, dict[str, float | int | None]] = {}
    preset = session.suite.presets[session.config.preset]
    for target in session.targets:
        own = outcomes
        if is_base:
            ids = {r.id for r in session.suite.requests(target, preset, session.config.seeds, session.config.steps)}
            own = outcomes[outcomes["request"].isin(ids)]
        else:
            own = outcomes[outcomes["target"] == str(target)]
        mine, true = _retained(own, target), _retained(reference, target)
        if not len(mine):
            continue
        found[str(target)] = {"kernel": kernel_distance(mine, true), "frechet": frechet_distance(mine, true), "n": len(mine)}
    return found


def _retained(frame: pd.DataFrame, target: Target) -> Any:
    """Features [n, d] of the rows that do not involve the target."""
    rows = frame[~(frame["style"].isin(target.names("style")) | frame["object"].isin(target.names("object")))]
    return np.stack([np.asarray(row) for row in rows["features"]]) if len(rows) else np.empty((0, 0))


def _costs(store: Store, plan: Plan) -> dict[str, dict[str, float | None]]:
    """Mean fit time and size over targets, sampling time and its ratio to `none`, the larger peak of fit and sampling."""
    sampling = store.read_json(_sampling_cost_file(plan))
    fits = pd.DataFrame([store.read_json(f"cost/fit-{fit}.json") for fit in dict.fromkeys(unit.fit.id for unit in plan.units)])
    found = {}
    for label, sampled in sampling.items():
        own = fits[fits["method"] == label]
        peaks = [peak for peak in (*own["peak_memory_mb"].dropna(), sampled["peak_memory_mb"]) if peak is not None]
        found[label] = {
            "fit_seconds": float(own["fit_seconds"].mean()),
            "seconds_per_image": sampled["seconds_per_image"],
            "ratio_to_none": sampled["seconds_per_image"] / sampling[BASE]["seconds_per_image"],
            "peak_memory_mb": max(peaks) if peaks else None,
            "stored_mb": float(own["stored_mb"].mean()),
        }
    return found


def _provenance(session: Session) -> dict[str, Any]:
    return {
        "model": session.model.digest, "judges": session.scorer.digests, "preset": session.config.preset,
        "seeds": session.config.seeds, "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }  # fmt: skip

"""Stored units to records: one small JSON per method, all that a table needs. No picture and no model is looked at."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from bench.cost import FIT_COST, SAMPLING_COST, SHARED_SECONDS
from bench.diffusion.soft import DECIMALS
from bench.distances import Reference, distances_of
from bench.errors import BenchError
from bench.identity import MethodSpec
from bench.metrics.artifacts import ArtifactReference
from bench.packed import stored_digest
from bench.plan import BASE, Plan, Unit
from bench.scoring import FEATURES
from bench.session import Session
from bench.sources import changed, sources_of
from bench.store import Store
from bench.types import Record, content_hash

PACKAGES = ("torch", "diffusers", "transformers", "timm", "numpy", "pillow", "pandas", "safetensors")
COLUMNS = ("target", "style", "object", "seed", "style_pred", "object_pred", "far", "first_edit")
ATTACK_COLUMNS = (
    "target", "style", "object", "seed", "clean", "success", "confirmed", "gradient_steps", "judged", "clean_prompt", "prompt",
    "style_pred", "object_pred", "seed_key", "learned", "note",
)  # fmt: skip
_READ = ("request", "style", "object", "seed", "style_pred", "object_pred", "first_edit", "slots")
ARTIFACT = "artifact"
"""The network that tells artifacts."""
BROKEN = "artifact"
"""The column of an examiner that tells them instead."""


class DamagedUnitsError(BenchError):
    """Units that are missing or do not have their digests, by id."""

    def __init__(self, units: Set[str]) -> None:
        super().__init__(f"{len(units)} units are missing or damaged: give the run's command again.")
        self.units = units


def make_records(session: Session, store: Store, failed: Mapping[str, str], reference: Reference) -> list[Record]:
    """One record per method. `failed` maps fits that could not be made to the reason. DamagedUnitsError if units cannot be read.

    Every unit is read once; features are held of one target at a time.
    """
    specs = {spec.label: spec for spec in session.plan.specs}
    costs = _costs(session.plan, store, failed)
    artifacts = _artifact_reference(session)
    provenance = _provenance(session) | {"artifact_threshold": artifacts.threshold if artifacts else None}
    units: dict[str, dict[str, list[Unit]]] = {label: {} for label in specs}
    for unit in session.plan.units:
        if unit.fit.id not in failed:
            units[unit.fit.spec.label].setdefault(str(unit.fit.target or ""), []).append(unit)
    damaged: set[str] = set()
    other_code = changed((store.config() or {}).get("sources", {}), sources_of(session.plan.specs))
    found = []
    for label, spec in specs.items():
        seen: list[pd.DataFrame] = []
        distances: dict[str, dict[str, Any]] = {}
        for target, own in units[label].items():
            frame = _with_far(_read(store, own, target, session, damaged), artifacts)
            distances |= distances_of(session.suite, session.preset, session.targets, frame, reference, target)
            seen.append(frame[[name for name in frame if not name.startswith(FEATURES)]])
        others = [one.column for one in session.scorer.examiners]
        outcomes = pd.concat(seen, ignore_index=True) if seen else pd.DataFrame(columns=[*COLUMNS, *others, "request"])
        own_code = {"code_changed": True} if spec.name in other_code else {}
        found.append(_record(session, spec, outcomes, distances, costs.get(label, {}), failed, provenance | own_code))
    attacks = _attacks(session, store, failed, damaged)
    if damaged:
        raise DamagedUnitsError(damaged)
    return [replace(record, attacks=attacks.get(record.label, {})) for record in found]


def _attacks(session: Session, store: Store, failed: Mapping[str, str], damaged: set[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Outcomes of attacks by label and attack."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    frames: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for unit in (unit for bundle in session.attacks for unit in bundle):
        label, spec = unit.fit.spec.label, unit.attack
        body = {
            "name": spec.name,
            "version": spec.version,
            "config": dict(spec.config),
            "card": asdict(spec.card),
            "missing": {},
            "seconds": 0.0,
        }
        own = found.setdefault(label, {}).setdefault(spec.label, body)
        reason = failed.get(unit.fit.id) or failed.get(unit.id)
        if reason:
            own["missing"][str(unit.target)] = reason
            continue
        frame = store.read_unit(unit.id, None, stored_digest(store.folder / "erasures" / unit.fit.id))
        if frame is None:
            damaged.add(unit.id)
            continue
        own["seconds"] += (store.read_json(f"cost/attack-{unit.id}.json", ["seconds"]) or {"seconds": 0.0})["seconds"]
        frames.setdefault((label, spec.label), []).append(frame.assign(target=str(unit.target)))
    for (label, name), parts in frames.items():
        every = pd.concat(parts, ignore_index=True)
        holes = every[every["success"].isna()]
        for target, own in holes.groupby("target"):
            why, goals = ", ".join(sorted(set(own["note"]))), (every["target"] == target).sum()
            found[label][name]["missing"][target] = f"{why} for {len(own)} of {goals} goals"
        every = every.drop(holes.index)
        every["learned"] = [[round(float(value), DECIMALS) for value in own] for own in every["learned"]]
        found[label][name]["outcomes"] = {column: plain(every[column]) for column in ATTACK_COLUMNS}
    nothing: dict[str, list[Any]] = {column: [] for column in ATTACK_COLUMNS}
    return {label: {name: {"outcomes": nothing, **body} for name, body in own.items()} for label, own in found.items()}


def _artifact_reference(session: Session) -> ArtifactReference | None:
    """The suite's, if it was made for this model and this network: with any other, the share of its far pictures means nothing."""
    path = session.suite.artifact_reference()
    reference = ArtifactReference.load(path) if path else None
    network = session.scorer.networks.get(ARTIFACT)
    made_for = (session.model.digest, network.digest if network else "")
    return reference if reference and (reference.model, reference.judge) == made_for else None


def _with_far(outcomes: pd.DataFrame, reference: ArtifactReference | None) -> pd.DataFrame:
    """A column `far`: whether each picture is far from every class, or an examiner calls it broken; null without either."""
    if BROKEN in outcomes:
        return outcomes.assign(far=outcomes[BROKEN].astype(object))
    column = f"{FEATURES}{ARTIFACT}"
    if reference is None or outcomes[column].isna().all():
        return outcomes.assign(far=None)
    seen = outcomes[column].notna()
    far = pd.Series(reference.far(np.stack(outcomes.loc[seen, column].tolist())), index=outcomes.index[seen], dtype=object)
    return outcomes.assign(far=far.reindex(outcomes.index))


def _read(store: Store, units: Sequence[Unit], target: str, session: Session, damaged: set[str]) -> pd.DataFrame:
    """Outcomes of units; those that cannot be read are added to `damaged`."""
    digests = {fit: stored_digest(store.folder / "erasures" / fit) for fit in {unit.fit.id for unit in units}}
    more = (one.column for one in session.scorer.examiners)
    columns = (*_READ, *(f"{FEATURES}{name}" for name in session.scorer.networks), *more)
    frames = {unit.id: store.read_unit(unit.id, columns, digests[unit.fit.id]) for unit in units}
    damaged.update(id_ for id_, frame in frames.items() if frame is None)
    whole = [frame.assign(target=target) for frame in frames.values() if frame is not None]
    return pd.concat(whole, ignore_index=True) if whole else pd.DataFrame(columns=[*columns, "target"])


def _record(
    session: Session, spec: MethodSpec, outcomes: pd.DataFrame, distances: Mapping[str, Mapping[str, float | int | None]],
    cost: Mapping[str, float | None], failed: Mapping[str, str], provenance: Mapping[str, Any],
) -> Record:  # fmt: skip
    missing = {target: why for (label, target), why in session.plan.unsupported.items() if label == spec.label}
    missing |= {str(unit.fit.target): failed[unit.fit.id] for unit in session.plan.units if unit.fit.id in failed and unit.fit.spec == spec}
    configs = {str(target): dict(spec.config_for(target)) for target in session.targets}
    tuning = {"budget": dict(spec.budget), "configs": configs} if spec.budget else None
    inputs = {target: dict(own) for target, own in spec.inputs.items() if own}
    columns = [*COLUMNS, *(one.column for one in session.scorer.examiners if one.column != BROKEN)]
    provenance = {**provenance, "other_slots": _other_slots(session, outcomes)}
    if session.config.sequential:
        provenance["sequential"] = "continued from the last erasure" if spec.continues else "fitted again on all"
    return Record(
        method=spec.name, label=spec.label, version=spec.version, config=dict(spec.config), card=spec.card, protocol=session.protocol,
        numerics=session.numerics, outcomes={name: plain(outcomes[name]) for name in columns},
        distances=distances, cost=cost, missing=missing, provenance=provenance,
        tuning=tuning, inputs=inputs,
    )  # fmt: skip


def _other_slots(session: Session, outcomes: pd.DataFrame) -> dict[str, int]:
    """Pictures by the slots of their calls, of those that were sampled again with fewer than the run's."""
    counts = outcomes["slots"].value_counts() if "slots" in outcomes else pd.Series(dtype=int)
    return {str(int(slots)): int(n) for slots, n in counts.items() if slots != session.numerics["slots"]}


def plain(column: pd.Series) -> list[Any]:
    """Values that JSON knows, null for what is missing."""
    return column.astype(object).where(column.notna(), None).tolist()


def first_units(plan: Plan, failed: Set[str]) -> dict[str, Unit]:
    """Per label, a unit of its first erasure that could be made: what sampling is timed on."""
    first: dict[str, Unit] = {}
    for unit in plan.units:
        if unit.fit.id not in failed:
            first.setdefault(unit.fit.spec.label, unit)
    return first


def sampling_cost_file(first: Mapping[str, Unit]) -> str:
    """Methods are only comparable when timed side by side, so each set of erasures has a file of its own."""
    return f"cost/sampling-{content_hash(sorted(unit.fit.id for unit in first.values()))}.json"


def _costs(plan: Plan, store: Store, failed: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Mean fit time and size over fits, how many those are, sampling time and its ratio to `none`, the larger peak of fit and sampling."""
    fits: dict[str, list[dict[str, Any]]] = {}
    for label, fit in dict.fromkeys((unit.fit.spec.label, unit.fit.id) for unit in plan.units):
        cost = store.read_json(f"cost/fit-{fit}.json", FIT_COST)
        fits.setdefault(label, []).extend([cost] if cost else [])
    first = first_units(plan, failed.keys())
    sampling = store.read_json(sampling_cost_file(first), [unit.fit.id for unit in first.values()]) or {}
    base = sampling.get(first[BASE].fit.id, {})
    found: dict[str, dict[str, float | None]] = {}
    for label, own in fits.items():
        sampled = sampling.get(first[label].fit.id, {}) if label in first else {}
        seconds, base_seconds = sampled.get(SAMPLING_COST[0]), base.get(SAMPLING_COST[0])
        peaks = [peak for peak in (*(cost["peak_memory_mb"] for cost in own), sampled.get(SAMPLING_COST[1])) if peak is not None]
        found[label] = {
            "fits": len(own),
            "fit_seconds": float(np.mean([cost["fit_seconds"] for cost in own])) if own else None,
            "shared_seconds": sum(cost.get(SHARED_SECONDS, 0.0) for cost in own) if own else None,
            "seconds_per_image": seconds,
            "ratio_to_none": seconds / base_seconds if seconds and base_seconds else None,
            "peak_memory_mb": max(peaks) if peaks else None,
            "stored_mb": float(np.mean([cost["stored_mb"] for cost in own])) if own else None,
        }
    return found


def _provenance(session: Session) -> dict[str, Any]:
    return {
        "plan": session.hash, "model": session.model.digest,
        "judges": session.scorer.digests, "preset": session.config.preset, "seeds": session.config.seeds,
        "python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES},
    }  # fmt: skip

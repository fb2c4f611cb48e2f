"""Turn records into a leaderboard: values with intervals, ranks, and footnotes for all that is missing or differs.

Everything is sorted, so that the same records in any order give the same leaderboard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from bench.errors import BenchError
from bench.leaderboard.attacks import attack_cells, attack_columns, uncalibrated
from bench.leaderboard.frames import CLIP, FAR, frames_of, records_by_key, seen_alike
from bench.leaderboard.notes import Entry, Note, footnotes_of, kind_of
from bench.leaderboard.table import COST, DISTANCES, KINDS, Cell, Leaderboard, Rank, Row, kind_columns, new_columns
from bench.metrics import artifacts, robustness, unlearning
from bench.metrics.aggregate import Aggregate, aggregate
from bench.metrics.detection import detection
from bench.metrics.paired import all_differences
from bench.metrics.uncertainty import Estimate
from bench.metrics.unlearning import METRICS, NONE
from bench.prompts import LEARNED
from bench.types import Floors, MetricRules, Record, Target, content_hash

CLIP_NAMES = ("clip_target", "clip_retained", "clip_all")


def build(records: Sequence[Record], rules: MetricRules, floors: Floors) -> Leaderboard:
    """The leaderboard of one record per label, exactly one of them by the method `none`.

    A method is ranked among targets of a kind if it is no control and has outcomes for every such target that any record has
    or lacks: means over different targets do not compare. Raises BenchError on records that cannot stand in one table.
    """
    by_key = records_by_key(records)
    frames = frames_of(by_key)
    paired = unlearning.pair(frames, rules)
    per_target, means, estimates = _metrics(paired, rules)
    wanted = sorted({*per_target["target"], *(target for record in records for target in record.missing)})
    kinds = [kind for kind in KINDS if kind in {kind_of(target) for target in wanted}]
    entries = {key: _entry(key, record, frames[key], wanted, per_target, means) for key, record in by_key.items()}
    assaults = attack_frames(by_key)
    found = robustness.attacked(assaults)
    notes = [*footnotes_of(entries, per_target, kinds), *uncalibrated(found)]
    footnotes = [note for note in notes if note.keys]
    rows = _rows(entries, kinds, footnotes, found, estimates)
    far, clip = (any(frame[name].notna().any() for frame in frames.values() if name in frame) for name in (FAR, CLIP))
    distances = {key for record in records for own in record.distances.values() for key, value in own.items() if value is not None}
    made_from = {"records": sorted(row.record for row in rows), "rules": asdict(rules), "floors": asdict(floors)}
    return Leaderboard(
        protocol=records[0].protocol,
        provenance=content_hash(made_from),
        concepts=len(wanted),
        seeds=len({seed for record in records for seed in record.outcomes["seed"]}),
        invalid=unlearning.below_floor(frames[NONE], rules, floors),
        columns=(
            *(column for kind in kinds for column in kind_columns(kind, far, clip, distances)),
            *(column for kind in kinds if _many(estimates, kind) for column in new_columns(kind)),
            *attack_columns(found),
            *COST,
        ),
        rows=rows,
        footnotes=tuple(note.shown for note in footnotes),
        remarks=tuple(note.shown for note in notes if not note.keys),
        targets=_labelled(per_target, by_key),
        differences=_differences(estimates, kinds, by_key),
        became=_labelled(unlearning.confusions(paired, rules), by_key),
        attacks=_labelled(found, by_key),
        attack_curves=_labelled(robustness.curves(assaults), by_key),
        attack_prompts=_labelled(_prompts(assaults), by_key),
        citations=_citations(records),
    )


def attack_frames(by_key: Mapping[str, Record]) -> dict[str, dict[str, pd.DataFrame]]:
    """Outcomes of attacks by label and attack."""
    found: dict[str, dict[str, pd.DataFrame]] = {key: {} for key in by_key}
    for key, record in by_key.items():
        for name, own in record.attacks.items():
            goals = len(own["outcomes"]["target"])
            if goals:
                found[key][name] = pd.DataFrame(own["outcomes"]).assign(seconds=own["seconds"] / goals)
    return found


def _prompts(assaults: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """The prompt that ended each attack, in the form that `--attack-prompts` takes."""
    parts = [
        pd.DataFrame({"method": key, "attack": name, **frame.drop(columns="seconds")})
        .assign(learned=[_learned_json(*own) for own in zip(frame["prompt"], frame["learned"], strict=True)])
        for key, own_frames in sorted(assaults.items()) for name, frame in sorted(own_frames.items())
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["method", "attack"])


def _learned_json(prompt: str, values: Sequence[float]) -> str:
    """{"<learned-…>": embedding}, empty without one."""
    names = LEARNED.findall(prompt)
    return json.dumps({names[0]: list(values)}) if names and values else ""


def _metrics(outcomes: unlearning.Outcomes, rules: MetricRules) -> tuple[pd.DataFrame, pd.DataFrame, Aggregate]:
    """What the metrics say of every method on every target, and on every kind of target, with what differences are made of."""
    per_target = unlearning.per_target(outcomes, rules).merge(artifacts.per_target(outcomes, rules), on=["method", "target"])
    estimates = aggregate(outcomes, rules)
    means = estimates.table()
    if not means.empty:
        means = means.merge(artifacts.aggregate(outcomes, rules), on=["method", "kind"])
        means = means.merge(artifacts.aggregate(outcomes, rules, CLIP, CLIP_NAMES), on=["method", "kind"])
    return per_target, means, estimates


def _differences(estimates: Aggregate, kinds: Sequence[str], by_key: Mapping[str, Record]) -> pd.DataFrame:
    """Of all pairs of rows with the same targets; see `all_differences`."""
    rows = [row for kind in kinds for row in all_differences(estimates, kind)]
    table = pd.DataFrame(rows)
    names = {key: record.label for key, record in by_key.items()}
    return table.assign(method=table["method"].map(names), other=table["other"].map(names)) if rows else table


def _digest(record: Record) -> str:
    """Content hash of a record, without the slow deep copy of `asdict`."""
    try:
        attacks = {name: {**own, "seconds": None} for name, own in record.attacks.items()}
        more = {"attacks": attacks} if attacks else {}
        own = {key: value for key, value in vars(record).items() if key != "attacks"}
        source = {key: value for key, value in record.provenance.items() if key != "costs"}
        # Time is no result: it is another in every run.
        return content_hash({**own, **more, "card": asdict(record.card), "cost": {}, "provenance": source})
    except (TypeError, ValueError) as error:
        raise BenchError(f'The record "{record.label}" is not plain JSON ({error}): make the record again.') from error


def _entry(
    key: str, record: Record, outcomes: pd.DataFrame, wanted: Sequence[str], per_target: pd.DataFrame, means: pd.DataFrame
) -> Entry:  # fmt: skip
    targets = sorted(per_target.loc[per_target["method"] == key, "target"])
    tried = set(record.outcomes["target"])
    # `none` is judged on the pictures of others' targets: where those have none, it lacks nothing.
    asked = sorted(set(per_target["target"])) if key == NONE else wanted
    missing = {
        target: record.missing.get(target, "no picture was judged" if target in tried or key == NONE else "not run")
        for target in asked
        if target not in targets
    }
    own = means[means["method"] == key].to_dict("records") if len(means) else []
    by_kind = {str(row["kind"]): {str(name): value for name, value in row.items()} for row in own}
    watched = key != NONE and "first_edit" in outcomes
    return Entry(record, targets, missing, by_kind, detection(outcomes, list(map(Target.parse, targets))) if watched else None)


def _many(estimates: Aggregate, kind: str) -> bool:
    """Whether any method has an interval for new concepts of a kind."""
    return any(found for (_, own), found in estimates.concepts.items() if own == kind)


def _rows(
    entries: Mapping[str, Entry], kinds: Sequence[str], footnotes: Sequence[Note], attacks: pd.DataFrame,
    estimates: Aggregate,
) -> tuple[Row, ...]:  # fmt: skip
    cells = {key: _cells(entry, kinds) | attack_cells(attacks, key) for key, entry in entries.items()}
    ranks = {kind: _ranks(entries, estimates, kind) for kind in kinds}
    return tuple(
        Row(
            label=entry.record.label,
            method=entry.record.method,
            version=entry.record.version,
            control=entry.record.card.control,
            ranks={kind: ranks[kind][key] for kind in kinds if key in ranks[kind]},
            cells=cells[key],
            record=_digest(entry.record),
            numerics=content_hash(dict(entry.record.numerics)),
            footnotes=tuple(number for number, note in enumerate(footnotes, 1) if key in note.keys),
            doubts=frozenset[str]().union(*(note.doubts for note in footnotes if key in note.keys)),
        )
        for key, entry in entries.items()
    )


def _labelled(table: pd.DataFrame, by_key: Mapping[str, Record]) -> pd.DataFrame:
    return table.assign(method=table["method"].map({key: record.label for key, record in by_key.items()}))


def _cells(entry: Entry, kinds: Sequence[str]) -> dict[tuple[str, str], Cell]:
    cells = {(column.table, column.key): Cell(entry.record.cost.get(column.key)) for column in COST}
    for kind in kinds:
        means = entry.means.get(kind, {})
        for name in (*METRICS, "score", "ar_target", "ar_retained", "clip_target", "clip_retained"):
            value, low, high = (_or_none(means.get(f"{name}{end}")) for end in ("", "_low", "_high"))
            cells[kind, name] = Cell(value, low, high, means.get(f"{name}_n"))
        parts, ar = [cells[kind, name].value for name in METRICS], _or_none(means.get("ar"))
        cells[kind, "average"] = Cell(_mean(parts))
        cells[kind, "ga"] = Cell(_mean([*parts, None if ar is None else 1 - ar]))
        for name in DISTANCES:
            values = entry.distances(kind, name)
            cells[kind, name] = Cell(float(np.mean(values)) if values else None, n=len(values), seed_sd=entry.seed_sd(kind, name))
        for name in (*METRICS, "score"):
            low, high = (_or_none(means.get(f"{name}_new_{end}")) for end in ("low", "high"))
            cells[f"new {kind}", name] = Cell(None if low is None else cells[kind, name].value, low, high, means.get("targets"))
        cells[f"new {kind}", "targets"] = Cell(means.get("targets"))
        cells[kind, "judged"] = Cell(means.get("ua_n", 0))
        cells[kind, "targets"] = Cell(len(entry.targets_of(kind)))
    return cells


def _mean(parts: Sequence[float | None]) -> float | None:
    """None if a part is."""
    whole = [part for part in parts if part is not None]
    return sum(whole) / len(parts) if len(whole) == len(parts) else None


def _or_none(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _ranks(entries: Mapping[str, Entry], estimates: Aggregate, kind: str) -> dict[str, Rank]:
    """Rank by label from 1, ties sharing the better one.

    Rows of one method with the very same outcomes, as where tuning changed nothing, are one: they share a rank, and count once for others.
    """
    scores: dict[str, Estimate] = {}
    for key, entry in entries.items():
        score = estimates.noise.get((key, kind), {}).get("score")
        if key != NONE and not entry.record.card.control and not entry.lacks(kind) and score is not None:
            scores[key] = score

    def alike(one: str, other: str) -> bool:
        ours, theirs = entries[one].record, entries[other].record
        return scores[one].value == scores[other].value and ours.method == theirs.method and seen_alike(ours, theirs, kind)

    same: dict[str, str] = {}
    for key in scores:
        same[key] = next((first for first in same.values() if alike(first, key)), key)
    counted = list(dict.fromkeys(same.values()))
    spans = estimates.ranks(counted, kind)
    return {key: Rank(1 + sum(scores[other].value > own.value for other in counted), *spans[same[key]]) for key, own in scores.items()}


def _citations(records: Sequence[Record]) -> tuple[str, ...]:
    """BibTeX entries of the cards, sorted, one per citation key: BibTeX stops at a repeated one."""
    entries: dict[str, str] = {}
    attacks = {str(own["card"]["bibtex"]).strip() for record in records for own in record.attacks.values()}
    for text in sorted({record.card.bibtex.strip() for record in records} | attacks):
        for entry in re.split(r"(?m)^(?=\s*@)", text):
            match = re.match(r"\s*@\w+\s*\{\s*([^,\s]+)\s*,", entry)
            if match:
                entries.setdefault(match[1], entry.strip())
    return tuple(entries[key] for key in sorted(entries))

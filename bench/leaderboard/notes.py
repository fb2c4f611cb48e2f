"""Footnotes: all that is missing from a table or differs between its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd

from bench.leaderboard.table import DISTANCES, KINDS
from bench.metrics.unlearning import NONE
from bench.types import Record, Target, content_hash

BROKEN_FROM = 0.5
"""Share of a kind's target pictures that are far from every class, from which UA is no longer about the concept."""
_BROKEN = (
    "more than half of the pictures prompted with an erased {} are far from every class, so that UA is in large part what the judge happens"
    " to call broken pictures"
)


class Note(NamedTuple):
    """A footnote, the labels of the rows that it concerns, none if all, and the tables, or kinds of targets, that it makes unreliable."""

    text: str
    keys: set[str]
    doubts: frozenset[str] = frozenset()

    @property
    def shown(self) -> str:
        """As tables print it."""
        return f"{'‡ ' if self.doubts else ''}{self.text}"


@dataclass(frozen=True)
class Entry:
    """A record with what is derived from it alone. `targets` have judged pictures; `missing` maps the others to the reason."""

    record: Record
    targets: list[str]
    missing: Mapping[str, str]
    means: Mapping[str, Mapping[str, Any]]
    """Its row of `unlearning.aggregate` and of `artifacts.aggregate` by kind."""
    detection: Mapping[str, Any] | None
    """Of a method with activation edits, how often they act on pictures that do not show the target (`bench.metrics.detection`)."""

    def targets_of(self, kind: str) -> list[str]:
        """Judged ones of a kind."""
        return [target for target in self.targets if kind_of(target) == kind]

    def lacks(self, kind: str) -> list[str]:
        """Missing ones of a kind."""
        return [target for target in sorted(self.missing) if kind_of(target) == kind]

    def distances(self, kind: str, name: str) -> list[float]:
        """Those there are over its targets of this kind."""
        found = [self.record.distances.get(target, {}).get(name) for target in self.targets_of(kind)]
        return [float(value) for value in found if value is not None]

    def seed_sd(self, kind: str, name: str) -> float | None:
        """Standard deviation over seeds of the mean over targets of distances of one seed's pictures; None unless all have two seeds."""
        own = [self.record.distances.get(target, {}).get("seeds", {}).get(name, {}) for target in self.targets_of(kind)]
        seeds = set.intersection(*map(set, own)) if own else set()
        return stdev(fmean(values[seed] for values in own) for seed in sorted(seeds)) if len(seeds) > 1 else None


def kind_of(target: str) -> str:
    """Of a target as records name it: style, object or mixed."""
    return Target.parse(target).kind


def footnotes_of(entries: Mapping[str, Entry], per_target: pd.DataFrame, kinds: Sequence[str]) -> list[Note]:
    """In a fixed order, doubts first."""
    found: dict[tuple[str, frozenset[str]], list[str]] = {}
    for key, entry in entries.items():
        own = per_target[per_target["method"] == key]
        for text, doubts in [*_doubts(entry, own, kinds), *((text, frozenset[str]()) for text in _texts(entry, kinds))]:
            found.setdefault((text, doubts), []).append(key)
    notes = [
        Note(f"{', '.join(entries[key].record.label for key in keys)}: {text}.", set(keys), doubts)
        for (text, doubts), keys in found.items()
    ]
    notes += _shared_notes(entries) + _numerics_note(entries) + _runs_note(entries) + _untuned_note(entries) + _choice_note(entries)
    return sorted(notes, key=lambda note: not note.doubts)


def _doubts(entry: Entry, per_target: pd.DataFrame, kinds: Sequence[str]) -> list[tuple[str, frozenset[str]]]:
    """Why one row's numbers mean something else than they seem to, and on targets of which kinds."""
    record, texts = entry.record, []
    unscored = per_target[per_target["unscored"] > 0]
    if len(unscored):
        pictures = int(unscored["unscored"].sum())
        texts.append(f"{pictures} pictures of {len(unscored)} targets are missing or unjudged; shares are over the rest")
    if record.tuning and record.tuning["budget"].get("on") == "evaluation":
        texts.append(_tuning_note(record.tuning["budget"], record.config))
    return (
        [(text, frozenset(KINDS)) for text in texts]
        + [(text, frozenset(f"{kind_of(target)} attacks" for target in targets)) for text, targets in _attack_notes(record)]
        + [(_BROKEN.format(kind), frozenset({kind})) for kind in kinds if _broken(entry, kind)]
    )


def _broken(entry: Entry, kind: str) -> bool:
    share = entry.means.get(kind, {}).get("ar_target")
    return share is not None and share > BROKEN_FROM


def _texts(entry: Entry, kinds: Sequence[str]) -> list[str]:
    """What else is to be said of one row."""
    record = entry.record
    texts = [_missing_note(entry, kind) for kind in kinds if entry.lacks(kind)]
    for kind in kinds:
        n, targets = max(len(entry.distances(kind, key)) for key in DISTANCES), len(entry.targets_of(kind))
        if 0 < n < targets:
            texts.append(f"distances are means over {n} of {targets} {kind} targets")
    for slots, pictures in sorted(record.provenance.get("other_slots", {}).items()):
        texts.append(f"{pictures} pictures were sampled in calls of {slots} slots, as memory ran out")
    if record.provenance.get("code_changed"):
        texts.append(f"its code has changed since its pictures were sampled, its version ({record.version}) has not")
    if record.tuning and record.tuning["budget"].get("on") != "evaluation":
        texts.append(_tuning_note(record.tuning["budget"], record.config))
    fits = int(record.cost.get("fits") or 0)
    if 0 < fits < len(entry.targets) and record.method != NONE:
        texts.append(f"costs are of {fits} of {len(entry.targets)} fits")
    if entry.detection:
        texts.append(_detection_note(entry.detection))
    return texts


def _tuning_note(budget: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How much was spent, and what was otherwise then."""
    if budget.get("on") == "evaluation":
        source = f"published in {budget['published']}, " if "published" in budget else ""
        return (
            f"parameters {source}chosen per concept among {budget['settings']} settings by the very judge that evaluates: too good"
            " by what that lets them fit"
        )
    before = json.loads(budget.get("untuned", "{}"))
    other = ", ".join(sorted(name for name, value in before.items() if config.get(name) != value))
    shared = f" kind, on {', '.join(budget['shared'])}, each" if "shared" in budget else " concept,"
    return (
        f"parameters tuned per{shared} with up to {budget['settings']} settings and {budget['pictures']} pictures, on"
        f" another judge, other noise and other prompts{f', and with another value of {other}' if other else ''}"
    )


def budget_of(record: Record) -> str:
    """What tuning was allowed, "none" without any."""
    if record.tuning is None:
        return "none"
    budget = record.tuning["budget"]
    per = "kind" if "shared" in budget else "concept"
    return f"{budget['settings']} settings{', ' + str(budget['pictures']) + ' pictures' if 'pictures' in budget else ''} per {per}"


def tuned_values(record: Record) -> list[str]:
    """What tuning changed, and for which targets: "styles: features=1, multiplier=-20.0"."""
    configs: Mapping[str, Mapping[str, Any]] = record.tuning["configs"] if record.tuning else {}
    groups: dict[str, list[str]] = {}
    for target, config in sorted(configs.items()):
        values = {name: value for name, value in sorted(config.items()) if record.config.get(name) != value}
        groups.setdefault(", ".join(f"{name}={json.dumps(value)}" for name, value in values.items()), []).append(target)
    found = []
    for changed, targets in groups.items():
        whole = [kind for kind in KINDS if {name for name in configs if kind_of(name) == kind} == set(targets)]
        found += [f"{f'{whole[0]}s' if whole else ', '.join(targets)}: {changed}"] if changed else []
    return found


def _shared_notes(entries: Mapping[str, Entry]) -> list[Note]:
    """What fits share is made once, by whichever fit needs it first: it concerns all rows of that method."""
    notes = []
    for method in dict.fromkeys(entry.record.method for entry in entries.values()):
        own = {key: entry.record for key, entry in entries.items() if entry.record.method == method and entry.record.cost.get("fits")}
        # A row for which tuning chose nothing else has the very fits of the untuned one, measured once.
        seconds = sum({record.cost.get("shared_seconds") or 0.0 for record in own.values()})
        if seconds >= 1:
            labels = ", ".join(record.label for record in own.values())
            notes.append(Note(f"{labels}: fit times are without {seconds:.0f} s for what fits share.", set(own)))
    return notes


def _runs_note(entries: Mapping[str, Entry]) -> list[Note]:
    """Where costs come from another run than the outcomes, or from several, as times do not compare between them."""
    sources = [entry.record.provenance.get("costs") for entry in entries.values()]
    runs = {(own or {}).get("plan", entry.record.provenance.get("plan")) for own, entry in zip(sources, entries.values(), strict=True)}
    if len(runs) > 1:
        text = f"Costs come from {len(runs)} runs: seconds were measured in each, and compare as ratios to its own unedited model alone."
    elif any(sources):
        own = next(filter(None, sources))
        text = f"Costs are of a run of their own: {own['protocol']}, {own['numerics'].get('threads')} threads."
    else:
        return []
    return [Note(text, set())]


def _untuned_note(entries: Mapping[str, Entry]) -> list[Note]:
    """Beside tuned rows, those of methods that have none."""
    tuned = {entry.record.method for entry in entries.values() if entry.record.tuning}
    others = {key for key, entry in entries.items() if key != NONE and entry.record.method not in tuned}
    if not tuned or not others:
        return []
    names = ", ".join(entries[key].record.label for key in sorted(others))
    return [Note(f"Not tuned, unlike {', '.join(sorted(tuned))}: {names}. Ranks between the two say less.", others)]


def _choice_note(entries: Mapping[str, Entry]) -> list[Note]:
    """Parameters that name one of several ways, so that the table says which."""
    told: dict[str, list[str]] = {}
    for key, entry in entries.items():
        record, ways = entry.record, []
        configs = list(record.tuning["configs"].values()) if record.tuning else []
        for name in sorted(name for name, value in record.config.items() if key != NONE and isinstance(value, str)):
            values = {record.config[name], *(config.get(name) for config in configs)}
            ways.append(f"{name}={values.pop() if len(values) == 1 else 'tuned'}")
        if ways:
            told.setdefault(", ".join(ways), []).append(record.label)
    every = "; ".join(f"{', '.join(labels)} with {ways}" for ways, labels in told.items())
    return [Note(f"Chosen among several ways: {every}.", set())] if told else []


def _detection_note(detection: Mapping[str, Any]) -> str:
    pooled, by_target = detection["pooled"], detection["targets"]
    told = (
        f"changed {_percent(pooled, pooled['unrelated'])} of the pictures that do not show the target (95 % interval for other noise,"
        f" {pooled['pictures']:,} requests)"
    )
    if not pooled["unrelated"]:
        return told
    target = max(sorted(by_target), key=lambda name: by_target[name]["worst"]["share"])
    worst = by_target[target]["worst"]
    return (
        f"{told}; the worst pair of concepts is {worst['concept']} with {target} erased, {_percent(worst, worst['share'])} of {worst['n']}"
    )


def _percent(found: Mapping[str, Any], share: float) -> str:
    return f"{100 * share:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _missing_note(entry: Entry, kind: str) -> str:
    lacking, have = entry.lacks(kind), len(entry.targets_of(kind))
    reasons = _by_reason({target: entry.missing[target] for target in lacking})
    # Names matter only where some targets are there: an unsupported kind needs the reason alone.
    why = "; ".join(f"{reason}: {', '.join(targets)}" if have else reason for reason, targets in sorted(reasons.items()))
    return f"{len(lacking)} of {len(lacking) + have} {kind} targets are missing ({why})"


def _attack_notes(record: Record) -> list[tuple[str, list[str]]]:
    """What attacks could not be made, or not as asked, and on which targets."""
    found = []
    for attack, own in sorted(record.attacks.items()):
        outcomes = own["outcomes"]
        for note in sorted({*outcomes["note"]} - {""}):
            targets = sorted({target for target, other in zip(outcomes["target"], outcomes["note"], strict=True) if other == note})
            found.append((f"{attack} ran as {note.rstrip('.')}", targets))
        for reason, targets in sorted(_by_reason(own["missing"]).items()):
            found.append((f"{attack} lacks outcomes on {', '.join(sorted(targets))} ({reason})", targets))
    return found


def _by_reason(missing: Mapping[str, str]) -> dict[str, list[str]]:
    """Targets by why they are missing."""
    reasons: dict[str, list[str]] = {}
    for target, reason in missing.items():
        reasons.setdefault(" ".join(reason.split()).rstrip("."), []).append(target)
    return reasons


def _numerics_note(entries: Mapping[str, Entry]) -> list[Note]:
    groups: dict[str, list[str]] = {}
    for key, entry in entries.items():
        groups.setdefault(content_hash(dict(entry.record.numerics)), []).append(key)
    if len(groups) == 1:
        return []
    every = [entry.record.numerics for entry in entries.values()]
    other = [name for name in sorted({name for own in every for name in own}) if len({str(own.get(name)) for own in every}) > 1]
    lists = "; ".join(
        f"{', '.join(f'{name} {entries[keys[0]].record.numerics.get(name)}' for name in other)}:"
        f" {', '.join(entries[key].record.label for key in keys)} ({digest})"
        for digest, keys in sorted(groups.items())
    )
    text = f"Numerics differ, so that pictures from the same noise may differ between methods: {lists}."
    return [Note(text, {key for keys in groups.values() if NONE not in keys for key in keys}, frozenset(KINDS))]

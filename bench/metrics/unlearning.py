"""How much of a concept is gone and what it cost the rest: UA, IRA, CRA, and the score that ranks.

UA, IRA and CRA are those of UnlearnCanvas (arXiv 2402.11846). Outcomes are frames with one row per picture and the columns
style, object, seed (what was asked for; style "" for no style), style_pred and object_pred (what the judge saw, perhaps
"no object"; null if nothing was judged). Shares are in [0, 1]; what has no judged picture is None, or NaN inside a frame, never 0.

Means over targets and their intervals are in `bench.metrics.aggregate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.metrics.uncertainty import Array, Design, Share, mean, wilson
from bench.types import KINDS, Floors, Kind, MetricRules, Target

NONE = "none"
"""The method that erases nothing; its pictures serve every target."""
CELL = ["style", "object", "seed"]
METRICS = ("ua", "ira", "cra")
BECAME = ["concept", "became", "n", "share"]


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] of one method on one target, None where there is no picture, and the judgements behind each."""

    ua: float | None
    ira: float | None
    cra: float | None
    ua_n: int
    ira_n: int
    cra_n: int


def accuracy(outcomes: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Per concept of this kind, sorted by name: concept, n, correct, accuracy, low, high (Wilson)."""
    pictures = _judged(outcomes)
    correct = pictures[kind] == pictures[f"{kind}_pred"]
    rows = []
    for name, hits in correct.groupby(pictures[kind], observed=True):
        low, high = wilson(int(hits.sum()), len(hits)) or (None, None)
        rows.append((str(name), len(hits), int(hits.sum()), float(hits.mean()), low, high))
    return pd.DataFrame(rows, columns=["concept", "n", "correct", "accuracy", "low", "high"])


def scores(outcomes: pd.DataFrame, target: Target, rules: MetricRules) -> Scores:
    """UA, IRA and CRA of a method's outcomes on one target.

    UA is one minus the accuracy of the target's own concepts on the pictures prompted with them; IRA is the accuracy of the
    retained concepts of the target's kinds, on pictures that show none of its concepts; CRA is that of the concepts of the
    other kind, which a mixed target does not have. All are means over concepts, so that each weighs the same.
    A picture counts once for each kind that it is judged by.
    """
    found = shares(_judged(outcomes).assign(unit=0, unedited=False), target, rules, Design([0]))
    ua, ira, cra = (_or_none(own.value) for own in found)
    return Scores(ua, ira, cra, *(own.n for own in found))


def became(outcomes: pd.DataFrame, target: Target) -> pd.DataFrame:
    """What the judge saw on pictures prompted with each erased concept: concept, became, n, share; most frequent first."""
    return pd.DataFrame(_became(_judged(outcomes), target), columns=BECAME)


def _became(judged: pd.DataFrame, target: Target) -> Iterator[tuple[str, str, int, float]]:
    for concept in sorted(target.concepts):
        seen = judged[f"{concept.kind}_pred"][judged[concept.kind] == concept.name]
        counts = {str(label): int(n) for label, n in seen.value_counts().items() if n}
        for label, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            yield str(concept), label, n, n / len(seen)


def ranking_score(ua: float | None, ira: float | None, cra: float | None, ira_none: float | None, cra_none: float | None) -> float | None:
    """Harmonic mean of UA and of IRA and CRA relative to `none`, each at most 1; 0 if one is 0.

    None if a part is None or `none` retains nothing.

    Takes means over the targets of one kind. Unlike their plain mean it is won neither by doing nothing nor by erasing all.
    """
    if ua is None or ira is None or cra is None or not ira_none or not cra_none:
        return None
    parts = ua, min(1.0, ira / ira_none), min(1.0, cra / cra_none)
    return 3 / sum(1 / part for part in parts) if all(parts) else 0.0


def per_target(outcomes: Outcomes, rules: MetricRules) -> pd.DataFrame:
    """One row per method and target with a judged picture, sorted by both.

    `outcomes`: method → frame (or `pair` of that), with a column `target` (see `bench.types.Target`) except under "none", whose
    pictures are taken, for each target, in the cells (style, object, seed) that the other methods have for it. Columns: method,
    target, kind, ua, ira, cra, ua_low, ua_high (Wilson, for targets of one concept), ua_n, ira_n, cra_n (judgements), unscored
    (pictures of the target's cells that this method lacks or that nobody judged). Raises KeyError without "none" or one of the columns.
    """
    paired = pair(outcomes, rules)
    rows = []
    for (method, target), found in sorted(paired.shares(rules).items(), key=lambda item: item[0]):
        parsed, (ua, ira, cra) = Target.parse(target), found
        one = len(parsed.concepts) == 1 and ua.n > 0
        low, high = (wilson(round(ua.value * ua.n), ua.n) if one else None) or (None, None)
        row = {"method": method, "target": target, "kind": parsed.kind, "ua": ua.value, "ira": ira.value, "cra": cra.value}
        row |= {"ua_low": low, "ua_high": high, "ua_n": ua.n, "ira_n": ira.n, "cra_n": cra.n}
        rows.append(row | {"unscored": paired.expected[target] - len(paired.pictures[method, target])})
    shares = [*METRICS, "ua_low", "ua_high"]
    table = pd.DataFrame(rows, columns=["method", "target", "kind", *shares, "ua_n", "ira_n", "cra_n", "unscored"])
    return table.astype(dict.fromkeys(shares, np.float64))


def confusions(outcomes: Outcomes, rules: MetricRules) -> pd.DataFrame:
    """`became` of every method and target, with these as the first two columns; `outcomes` as in `per_target`."""
    pictures = sorted(pair(outcomes, rules).pictures.items(), key=lambda item: item[0])
    rows = [(*key, *row) for key, frame in pictures for row in _became(frame, Target.parse(key[1]))]
    return pd.DataFrame(rows, columns=["method", "target", *BECAME])


def below_floor(outcomes: pd.DataFrame, rules: MetricRules, floors: Floors) -> str | None:
    """Why a table with these outcomes of `none` is invalid, in words; None if it is valid."""
    for kind in KINDS:
        floor, rates = getattr(floors, kind), accuracy(outcomes[counted(outcomes, kind, rules)], kind)["accuracy"]
        if rates.empty:
            return f"the unedited model has no judged picture, so that its {kind} accuracy is unknown"
        if rates.mean() < floor:
            return f"the unedited model's {kind} accuracy is {rates.mean():.3f}, below the floor of {floor:.3f}"
    return None


def shows(pictures: pd.DataFrame, target: Target) -> pd.Series:
    """Which pictures were prompted with one of the target's concepts."""
    return pd.Series(among(pictures["style"], target.names("style")) | among(pictures["object"], target.names("object")), pictures.index)


def among(column: pd.Series, names: Iterable[str]) -> NDArray[np.bool_]:
    """[n], which are one of a few names: `isin` of categories takes several times as long."""
    found = np.zeros(len(column), bool)
    for name in names:
        found |= (column == name).to_numpy(bool)
    return found


@dataclass(frozen=True)
class Paired:
    """Judged pictures by (method, target), each with its unit of `design` in a column `unit`; `expected` pictures by target."""

    pictures: Mapping[tuple[str, str], pd.DataFrame]
    expected: Mapping[str, int]
    design: Design

    _shares: dict[MetricRules, dict[tuple[str, str], tuple[Share, Share, Share]]] = field(default_factory=dict, compare=False)

    @property
    def units(self) -> int:
        """How many."""
        return len(self.design.stratum)

    def shares(self, rules: MetricRules) -> Mapping[tuple[str, str], tuple[Share, Share, Share]]:
        """UA, IRA and CRA by (method, target), counted once."""
        if rules not in self._shares:
            self._shares[rules] = {key: shares(frame, Target.parse(key[1]), rules, self.design) for key, frame in self.pictures.items()}
        return self._shares[rules]

    def by_kind(self) -> Iterator[tuple[tuple[str, str], list[str]]]:
        """Each (method, kind of target) with its targets, in sorted order."""
        groups: dict[tuple[str, str], list[str]] = {}
        for method, target in sorted(self.pictures):
            groups.setdefault((method, Target.parse(target).kind), []).append(target)
        yield from sorted(groups.items())


Outcomes: TypeAlias = Mapping[str, pd.DataFrame] | Paired


def pair(outcomes: Outcomes, rules: MetricRules) -> Paired:
    """The pictures to compare, further columns kept: for each target, those of `none` are in the cells that other methods have.

    Independent units are requests, compared within their cell, or whole seeds where these share their noise. What is paired
    already stays as it is.
    """
    if isinstance(outcomes, Paired):
        return outcomes
    edited = {method: frame for method, frame in outcomes.items() if method != NONE and len(frame)}
    if not edited:
        return Paired({}, {}, Design([]))
    cells = pd.concat([frame[CELL] for frame in edited.values()]).drop_duplicates().sort_values(CELL, ignore_index=True)
    cells["request"] = np.arange(len(cells), dtype=np.int32)
    cells["unit"] = pd.factorize(cells["seed"])[0] if rules.shared_noise else cells["request"]
    none = outcomes[NONE].astype({"seed": cells["seed"].dtype}).merge(cells, on=CELL).assign(unedited=True)
    by_target = {method: _by_target(_with_unedited(frame).merge(cells, on=CELL)) for method, frame in edited.items()}
    pictures: dict[tuple[str, str], pd.DataFrame] = {}
    expected: dict[str, int] = {}
    for target in sorted({target for groups in by_target.values() for target in groups}):
        found = {method: groups[target] for method, groups in by_target.items() if target in groups}
        found[NONE] = none[none["request"].isin(pd.concat([frame["request"] for frame in found.values()]))]
        counts = [np.bincount(frame["request"], minlength=len(cells)) for frame in found.values()]
        expected[target] = int(np.max(counts, axis=0).sum())
        judged = {(method, target): _judged(frame) for method, frame in found.items()}
        pictures |= {pair: frame for pair, frame in judged.items() if len(frame)}
    strata = [0] * cells["unit"].nunique() if rules.shared_noise else cells["style"].astype(str) + "/" + cells["object"].astype(str)
    return Paired(pictures, expected, Design(strata))


def _with_unedited(outcomes: pd.DataFrame) -> pd.DataFrame:
    """With a column that says which pictures are the unedited model's own, as their edit never acted."""
    never = outcomes["first_edit"] == -1 if "first_edit" in outcomes else False
    return outcomes.assign(unedited=never)


def _by_target(outcomes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(target): frame for target, frame in outcomes.groupby("target", observed=True)}


def _judged(outcomes: pd.DataFrame) -> pd.DataFrame:
    judged = outcomes["style_pred"].notna() & outcomes["object_pred"].notna()
    return outcomes if judged.all() else outcomes[judged]


def shares(pictures: pd.DataFrame, target: Target, rules: MetricRules, design: Design) -> tuple[Share, Share, Share]:
    """UA, IRA and CRA of judged pictures with columns `unit`, of the design, and `unedited`."""
    own = [kind for kind in KINDS if target.names(kind)]
    other = [kind for kind in KINDS if not target.names(kind)]
    named = {kind: among(pictures[kind], target.names(kind)) for kind in own}
    retained = ~np.logical_or.reduce(list(named.values()))
    crossed = np.ones(len(pictures), bool) if rules.cra_includes_target else retained
    if rules.style_cra_plain and "style" in own:
        crossed = crossed & (pictures["style"] == "").to_numpy()
    asked = {kind: counted(pictures, kind, rules) for kind in KINDS}
    kept = _accuracy(pictures, named, design)
    return (
        Share(1 - kept.value, -kept.influences, kept.pictures, kept.unedited),
        _accuracy(pictures, {kind: retained & asked[kind] for kind in own}, design),
        _accuracy(pictures, {kind: crossed & asked[kind] for kind in other}, design),
    )


def counted(pictures: pd.DataFrame, kind: Kind, rules: MetricRules) -> NDArray[np.bool_]:
    """[n], those that were prompted with a concept of this kind."""
    return ~among(pictures[kind], ("", *rules.uncounted))


def _accuracy(pictures: pd.DataFrame, wanted: Mapping[Kind, NDArray[np.bool_]], design: Design) -> Share:
    """Mean over the concepts of the share of their pictures, of those wanted [n] of a kind, that were judged right."""
    rates, units = list[Array](), len(design.stratum)
    influences, counts, unedited = np.zeros(units), np.zeros(units), np.zeros(units)
    for kind, mask in wanted.items():
        concepts = pictures[kind][mask]
        codes, _ = pd.factorize(concepts)
        hits, unit = (concepts == pictures[f"{kind}_pred"][mask]).to_numpy(dtype=np.float64), pictures["unit"].to_numpy()[mask]
        judged = np.bincount(codes)
        rates.append(np.bincount(codes, hits) / judged)
        apart = (hits - rates[-1][codes]) / judged[codes]
        # A unit that is alone has nothing to be compared with but its concept's others, whose mean it is part of.
        alone = design.alone[unit] & (judged[codes] > 1)
        apart = np.where(alone, apart * np.sqrt(judged[codes] / np.maximum(1, judged[codes] - 1)), apart)
        influences += np.bincount(unit, apart, minlength=units)
        counts += np.bincount(unit, minlength=units)
        unedited += np.bincount(unit, pictures["unedited"].to_numpy()[mask], minlength=units)
    every = np.concatenate([np.zeros(0), *rates])
    return Share(float(mean(every, 0)), influences / max(1, len(every)), counts, unedited)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""Means over the targets of a kind and the score that ranks, each with two intervals.

One says how far the value would move with other noise *on these concepts*; the other, over concepts, what to expect of new ones of the
same kind, and is given from six targets on. Both are 95 %, see `bench.metrics.uncertainty`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from bench.metrics.uncertainty import Array, Design, Estimate, Share, rank_intervals, simultaneous_level
from bench.metrics.unlearning import METRICS, NONE, Outcomes, pair, ranking_score
from bench.types import MetricRules

CONCEPTS_FROM = 6
"""Targets for an interval over concepts."""

Estimates: TypeAlias = dict[tuple[str, str], dict[str, Estimate]]
"""(method, kind of target) → metric → value; metrics without one are left out."""


@dataclass
class Means:
    """Of shares over targets: one each is added."""

    values: list[float] = field(default_factory=list)
    each: list[Array] = field(default_factory=list)
    """Influences of each."""
    influences: Array = field(default_factory=lambda: np.zeros(1))
    seen: Array = field(default_factory=lambda: np.zeros(1))
    unedited: Array = field(default_factory=lambda: np.zeros(1))

    def add(self, share: Share) -> None:
        """Of one more target, if it has pictures."""
        if not np.isnan(share.value):
            self.values.append(share.value)
            self.each.append(share.influences)
            self.influences = self.influences + share.influences
            self.seen = self.seen + share.pictures
            self.unedited = self.unedited + (0 if share.unedited is None else share.unedited)

    @property
    def judged(self) -> int:
        """Judgements."""
        return int(self.seen.sum())

    @property
    def distinct(self) -> int:
        """Pictures: how often targets share the unedited model's own, where nothing was edited, says nothing."""
        return int((self.seen - self.unedited).sum() + (self.unedited > 0).sum())

    def with_noise(self, design: Design) -> Estimate:
        """With other noise, on these targets."""
        if not self.values:
            return Estimate(np.nan, np.zeros(len(design.stratum)), 0)
        n, spread = self.distinct, design.spread(self.influences / len(self.values))
        common = (self.unedited > 0) / n**1.5 if self.unedited.any() else None  # n of them are 1 / n²
        edited = max(1.0, float((self.seen - self.unedited).sum()))  # an edit that never acted may act on the next picture
        return Estimate(float(np.mean(self.values)), spread, n, edited / n**3, common)

    def over_concepts(self, design: Design) -> Estimate:
        """With other targets and other noise.

        How values differ between targets has the noise that each has of its own in it, not what all share, as they are of the same
        requests: the mean covariance of two targets' noise is added, and that one more picture might differ.
        """
        n, values = len(self.values), np.array(self.values)
        if not n:
            return Estimate(np.nan, np.zeros(0), 0)
        noise = self.with_noise(design)
        alone = float(np.mean([spread @ spread for spread in map(design.spread, self.each)]))
        shared = max(0.0, (n * float(noise.spread @ noise.spread) - alone) / (n - 1)) if n > 1 else 0.0
        spread = Design([0] * n).spread((values - values.mean()) / n)
        return Estimate(float(values.mean()), spread, n, shared + noise.picture)


@dataclass(frozen=True)
class Aggregate:
    """Every method on every kind of target."""

    design: Design
    """Of the units of `noise`."""
    noise: Estimates
    concepts: Estimates
    """Units are targets."""
    judged: Mapping[tuple[str, str], Mapping[str, int]]
    targets: Mapping[tuple[str, str], int]

    def table(self) -> pd.DataFrame:
        """One row per method and kind (style, object, mixed), sorted by both.

        Columns: method, kind; ua, ira, cra and score, each also with _low and _high (noise), _new_low and _new_high (new concepts),
        NaN where there is none; ua_n, ira_n, cra_n (judgements); targets.
        """
        rows = []
        for (method, kind), found in self.noise.items():
            row: dict[str, Any] = {"method": method, "kind": kind}
            for name in (*METRICS, "score"):
                row |= bounds(name, found.get(name), self.concepts[method, kind].get(name), self.design)
            row |= {f"{name}_n": self.judged[method, kind][name] for name in METRICS}
            rows.append(row | {"targets": self.targets[method, kind]})
        return pd.DataFrame(rows)

    def family(self, kind: str) -> list[str]:
        """Methods on all targets of a kind that any method has: what differences and ranks are of, all at once."""
        own = [method for method, kind_ in self.targets if kind_ == kind]
        most = max((self.targets[method, kind] for method in own), default=0)
        return [method for method in own if self.targets[method, kind] == most]

    def level(self, kind: str, metric: str) -> float:
        """For all differences between methods of a family at once, `none` left out; see `simultaneous_level`."""
        methods = [method for method in self.family(kind) if method != NONE]
        own = [found[metric] for method in methods if metric in (found := self.noise[method, kind])]
        return simultaneous_level(own, self.design)

    def ranks(self, methods: Sequence[str], kind: str) -> dict[str, tuple[int, int]]:
        """The ranks by score that each of these methods could have, all at once; see `rank_intervals`."""
        scores = [self.noise[method, kind]["score"] for method in methods]
        return dict(zip(methods, rank_intervals(scores, self.design, self.level(kind, "score")), strict=True))


def aggregate(outcomes: Outcomes, rules: MetricRules) -> Aggregate:
    """Means over targets; `outcomes` as in `bench.metrics.unlearning.per_target`.

    The score compares a method with `none` on the same targets, which may be fewer than others have.
    """
    paired = pair(outcomes, rules)
    each = paired.shares(rules)
    noise: Estimates = {}
    concepts: Estimates = {}
    judged, targets = {}, {}
    for (method, kind), names in paired.by_kind():
        own, base = ([_mean(each, who, names, place) for place in range(3)] for who in (method, NONE))
        of_noise = [[one.with_noise(paired.design) for one in group] for group in (own, base)]
        of_concepts = [[one.over_concepts(paired.design) for one in group] for group in (own, base)]
        noise[method, kind] = _named(*of_noise)
        concepts[method, kind] = _named(*of_concepts) if len(names) >= CONCEPTS_FROM else {}
        judged[method, kind] = {name: one.judged for name, one in zip(METRICS, own, strict=True)}
        targets[method, kind] = len(names)
    return Aggregate(paired.design, noise, concepts, judged, targets)


def bounds(name: str, noise: Estimate | None, concepts: Estimate | None, design: Design) -> dict[str, float]:
    """A share and its intervals as columns of a table."""
    low, high = noise.bounds(design) if noise else (np.nan, np.nan)
    new_low, new_high = concepts.bounds(Design([0] * len(concepts.spread))) if concepts else (np.nan, np.nan)
    return {
        name: noise.value if noise else np.nan, f"{name}_low": low, f"{name}_high": high,
        f"{name}_new_low": new_low, f"{name}_new_high": new_high,
    }  # fmt: skip


def _mean(each: Mapping[tuple[str, str], Sequence[Share]], method: str, targets: Sequence[str], place: int) -> Means:
    found = Means()
    for target in targets:
        if (method, target) in each:
            found.add(each[method, target][place])
    return found


def _named(own: Sequence[Estimate], base: Sequence[Estimate]) -> dict[str, Estimate]:
    """By metric, those that have a value, with the score."""
    found = {name: one for name, one in zip(METRICS, own, strict=True) if not np.isnan(one.value)}
    score = score_of(own, base)
    return found | ({"score": score} if score else {})


def score_of(own: Sequence[Estimate], base: Sequence[Estimate]) -> Estimate | None:
    """`ranking_score` of UA, IRA and CRA, given those of `none`; None if a part has no value.

    Its spread is the parts' times its gradient; a part that is better than that of `none` counts as if it were not capped, lest there
    be less noise at the cap than just below it. What IRA and CRA have in common with `none` leaves their ratios as they are.
    """
    values = [one.value for one in (*own, *base[1:])]
    if np.isnan(values).any() or len({len(one.spread) for one in (*own, *base[1:])}) > 1:
        return None
    score = ranking_score(*values)
    if score is None:
        return None
    (ua, ira, cra), (_, ira_none, cra_none) = own, base
    parts = np.array([ua.value, *(min(1.0, a.value / b.value) for a, b in ((ira, ira_none), (cra, cra_none)))])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = parts[:, None] / parts[None]  # of a part to each other: the score is 3 / Σ_j 1/p_j, its derivative 3 / (Σ_j p_i/p_j)²
    ratios[np.isnan(ratios)] = np.inf
    np.fill_diagonal(ratios, 1.0)
    slopes = 3 / ratios.sum(1) ** 2
    spread, added = slopes[0] * ua.spread, slopes[0] ** 2 * ua.one
    for slope, one, none in zip(slopes[1:], (ira, cra), (ira_none, cra_none), strict=True):
        spread = spread + slope * (one.spread / none.value - one.value / none.value**2 * none.spread)
        added += slope**2 * one.one / none.value**2
    common = None if ua.common is None else slopes[0] * ua.common
    return Estimate(score, spread, min(one.n for one in own), added, common)

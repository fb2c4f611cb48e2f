"""Methods whose true UA, IRA, CRA and score are known, on the real design of minicanvas: pictures of one request share their luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import norm

from bench.metrics.unlearning import CELL, NONE, ranking_score, shows
from bench.suites.minicanvas import SUITE
from bench.types import KINDS, Concept, Target

METHODS = {"a": (0.9, 0.95), "b": (0.9, 0.95), "c": (0.7, 0.98), "d": (0.98, 0.995), "e": (0.9, 0.7), "f": (0.8, 0.7)}
"""How much each erases and keeps; a and b differ by chance alone, cell by cell."""
GATED = {"e": 0.04, "f": 0.01}
"""Share of the pictures without the target on which the edit acts at all: the others are the unedited model's own."""
SHARED = 0.5
"""Of the variance of a picture's luck, what all pictures of its request have in common."""
UNEDITED = {"style_right": 0.99, "object_right": 0.995}
"""The unedited model, everywhere."""
CELLS, CONCEPTS = 0.7, 0.3
"""How much concepts, and cells within them, differ in difficulty (standard deviations of a probit)."""


@dataclass(frozen=True)
class World:
    """Every picture of every method with its probabilities of being seen as what it was prompted with."""

    pictures: Mapping[str, pd.DataFrame]
    """By method: target, style, object, seed, unit, style_right, object_right."""
    units: int
    truth: Mapping[tuple[str, str], Mapping[str, float]]
    """(method, kind) → metric → value."""

    def draw(self, seed: int) -> dict[str, pd.DataFrame]:
        """Outcomes with luck drawn anew."""
        chance = np.random.default_rng(seed)
        common = {kind: chance.standard_normal(self.units) for kind in KINDS}
        found: dict[str, pd.DataFrame] = {}
        for method, frame in sorted(self.pictures.items(), key=lambda item: item[0] != NONE):
            outcome = frame[["target", *CELL]].copy()
            for kind in KINDS:
                own = chance.standard_normal(len(frame))
                luck = SHARED**0.5 * common[kind][frame["unit"]] + (1 - SHARED) ** 0.5 * own
                outcome[f"{kind}_pred"] = np.where(luck < norm.ppf(frame[f"{kind}_right"]), frame[kind], "something else")
            found[method] = self._gated(outcome, method, chance, found) if method in GATED else outcome
        return found

    def _gated(self, outcome: pd.DataFrame, method: str, chance: np.random.Generator, found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """With the unedited model's outcome where the edit does not act."""
        frame = self.pictures[method]
        quiet = ~frame["shown"].to_numpy() & (chance.random(len(frame)) >= GATED[method])
        base = found[NONE].set_index(self.pictures[NONE]["unit"]).loc[frame["unit"]]
        preds = {f"{kind}_pred": np.where(quiet, base[f"{kind}_pred"], outcome[f"{kind}_pred"]) for kind in KINDS}
        return outcome.assign(**preds, first_edit=np.where(quiet, -1, 0))


def world(seeds: int, difficulty: int = 1) -> World:
    """With so many seeds per cell, as the preset quick has them."""
    preset = replace(SUITE.presets["quick"], seeds=seeds)
    targets = [Target((concept,)) for concept in SUITE.concepts]
    asked = {str(target): [(r.style, r.object, r.seed) for r in SUITE.requests(target, preset)] for target in targets}
    requests = sorted({request for own in asked.values() for request in own})
    unit = {request: place for place, request in enumerate(requests)}
    chance = np.random.default_rng(difficulty)
    pictures = {}
    for method, (erased, kept) in METHODS.items():
        parts = [_pictures(asked[str(target)], target, erased, kept, chance) for target in targets]
        pictures[method] = pd.concat(parts, ignore_index=True)
    pictures[NONE] = pd.DataFrame(requests, columns=CELL).assign(target="", **UNEDITED)
    for frame in pictures.values():
        frame["unit"] = [unit[request] for request in frame[CELL].itertuples(index=False, name=None)]
    values = {(method, kind): _truth(_expected(frame, method), kind, asked) for method, frame in pictures.items() for kind in KINDS}
    return World(pictures, len(requests), {key: {**own, "score": _score(own, values[NONE, key[1]])} for key, own in values.items()})


def _pictures(
    requests: list[tuple[str, str, int]], target: Target, erased: float, kept: float, chance: np.random.Generator
) -> pd.DataFrame:
    frame = pd.DataFrame(requests, columns=CELL).assign(target=str(target))
    cells = frame.groupby(["style", "object"], sort=True).ngroup().to_numpy()
    harder = chance.normal(0, CELLS, cells.max() + 1)[cells] + chance.normal(0, CONCEPTS)
    spread = (1 + CELLS**2 + CONCEPTS**2) ** 0.5
    gone, right = (norm.cdf(norm.ppf(share) * spread + harder) for share in (erased, kept))
    shown = shows(frame, target).to_numpy()
    return frame.assign(shown=shown, **{f"{kind}_right": np.where(shown & (kind == target.kind), 1 - gone, right) for kind in KINDS})


def _expected(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    """Probabilities with what the gate leaves alone."""
    if method not in GATED:
        return frame
    acts = np.where(frame["shown"], 1.0, GATED[method])
    return frame.assign(**{name: acts * frame[name] + (1 - acts) * right for name, right in UNEDITED.items()})


def _truth(pictures: pd.DataFrame, kind: str, asked: Mapping[str, list[tuple[str, str, int]]]) -> dict[str, float]:
    """Means over targets, each a mean over concepts of probabilities."""
    other = next(one for one in KINDS if one != kind)
    values = []
    for name, requests in asked.items():
        concept = Concept.parse(name)
        if concept.kind == kind:
            own = pictures[pictures["target"] == name]
            own = own if len(own) else pictures.merge(pd.DataFrame(requests, columns=CELL))
            shown = own[kind] == concept.name
            crossed = own if SUITE.rules.cra_includes_target else own[~shown]
            retained = own[~shown].groupby(kind)[f"{kind}_right"].mean().mean()
            values.append((1 - own.loc[shown, f"{kind}_right"].mean(), retained, crossed.groupby(other)[f"{other}_right"].mean().mean()))
    return dict(zip(("ua", "ira", "cra"), np.mean(values, axis=0), strict=True))


def _score(own: Mapping[str, float], base: Mapping[str, float]) -> float:
    return ranking_score(own["ua"], own["ira"], own["cra"], base["ira"], base["cra"]) or 0.0

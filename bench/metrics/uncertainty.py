"""How far a value would move with other noise, or for other concepts: intervals of shares, of their differences, and of ranks.

A statistic is known by its value and its *influences*: to first order, what each independent unit adds to it (the infinitesimal
jackknife; Efron 1982, chapter 6). A unit is all pictures of one request, over all targets and methods, as they share their initial
noise: influences of two statistics on the same units tell how the two move together. Units are compared within their stratum, a cell of
style and object, which the suite fixes: what differs between cells is no chance.

Shares are in [0, 1]. Their intervals are Wilson's with the number of independent trials that the variance amounts to (Korn and Graubard
1998), so that they stay in [0, 1] and have a width where every picture came out alike. Differences are made of two such intervals
(MOVER; Zou and Donner 2008) with the covariance that the influences give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import hypot
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

Array: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
ZERO = 1e-20
"""What rounding leaves of a variance where there is none is less."""
DRAWS = 4000
"""Of the joint distribution of several statistics, where no formula serves."""
SEED = 20240219


def wilson(successes: float, n: float, quantile: float | None = None) -> tuple[float, float] | None:
    """Interval for a share of n independent trials (Wilson 1927), 95 % without another quantile; None without trials."""
    if n == 0:
        return None
    z, share = float(ndtri((1 + LEVEL) / 2)) if quantile is None else quantile, successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # No successes and only successes have exact bounds, which rounding would miss by 1e-17.
    return (0.0 if successes == 0 else float(centre - half)), (1.0 if successes == n else float(centre + half))


def mean(values: Array, axis: int) -> Array:
    """Mean of what is not NaN along an axis, NaN where there is nothing; unlike `np.nanmean` without a warning."""
    seen = ~np.isnan(values)
    total, n = np.where(seen, values, 0.0).sum(axis), seen.sum(axis)
    share: Array = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
    return share


class Design:
    """Independent units in the strata that they are compared within."""

    def __init__(self, strata: Sequence[object] | NDArray[np.generic]) -> None:
        """A stratum per unit. Units that are alone in theirs are compared with one another."""
        _, codes, counts = np.unique(np.asarray(strata).astype(str), return_inverse=True, return_counts=True)
        self.alone: NDArray[np.bool_] = counts[codes] == 1
        _, self.stratum, self.counts = np.unique(np.where(self.alone, -1, codes), return_inverse=True, return_counts=True)

    @cached_property
    def freedom(self) -> int:
        """Degrees of freedom of a variance: units less strata."""
        return int(len(self.stratum) - len(self.counts))

    def freedom_of(self, spread: Array, known: float = 0.0) -> float:
        """Degrees of freedom of the variance that a spread [units] makes with one that is not estimated (Satterthwaite 1946).

        Where few strata have most of the variance it is known less well than all units would have it. That of a stratum of n is squared
        without bias: of a normal variance v, v² (n - 1) / (n + 1).
        """
        each = np.bincount(self.stratum, spread**2, minlength=len(self.counts))
        uncertain = float((each**2 / (self.counts + 1)).sum())
        found = (float(each.sum()) + known) ** 2 / uncertain if uncertain > ZERO**2 else np.inf
        return float(np.clip(found, min(1, self.freedom), self.freedom))

    def quantile(self, spread: Array, known: float = 0.0, level: float = LEVEL) -> float:
        """Of Student's t with `freedom_of`, for an interval of that level; of the normal distribution where there is but one unit."""
        freedom = self.freedom_of(spread, known)
        return float(stdtrit(freedom, (1 + level) / 2) if freedom else ndtri((1 + level) / 2))

    def spread(self, influences: Array) -> Array:
        """[units] less their strata's means, scaled so that the sum of products of two estimates their covariance."""
        centres = np.bincount(self.stratum, influences, minlength=len(self.counts)) / self.counts
        scale = np.sqrt(self.counts / np.maximum(1, self.counts - 1))
        found: Array = (influences - centres[self.stratum]) * scale[self.stratum]
        return found


@dataclass(frozen=True)
class Share:
    """A share of pictures, or a mean of such shares, with what each resampling unit adds to it."""

    value: float
    """NaN without a picture."""
    influences: Array
    """[units]."""
    pictures: Array
    """[units], how many each has."""
    unedited: Array | None = None
    """[units], how many of them are the unedited model's own: those of one unit are one picture, however many targets it serves."""

    @property
    def n(self) -> int:
        """Judgements."""
        return int(self.pictures.sum())

    @classmethod
    def of(cls, values: Array, unit: NDArray[np.int64], units: int, unedited: NDArray[np.bool_] | None = None) -> Share:
        """The mean of values [n], each of a unit; `unedited` [n] as in the field."""
        value = float(values.mean()) if len(values) else np.nan
        apart = (values - value) / max(1, len(values))
        influences, pictures = (np.asarray(np.bincount(unit, own, minlength=units), np.float64) for own in (apart, np.ones(len(unit))))
        own = None if unedited is None else np.asarray(np.bincount(unit, unedited, minlength=units), np.float64)
        return cls(value, influences, pictures, own)


@dataclass(frozen=True)
class Estimate:
    """A value with all that its intervals need."""

    value: float
    """NaN where there is none."""
    spread: Array
    """[units], of `Design.spread`."""
    n: int
    """Judgements that it is made of: the trials of an interval where none differs from the others."""
    one: float = 0.0
    """What one more picture that differs would add to the variance: the few that differ near 0 and 1 say little of how many there are."""
    common: Array | None = None
    """[units], the same, as a deviation, of the unedited model's own pictures: every value that has one of them would move with it."""

    @cached_property
    def moves(self) -> Array:
        """[2 · units] whose products with those of another estimate sum to their covariance."""
        return np.concatenate([self.spread, np.zeros_like(self.spread) if self.common is None else self.common])

    @property
    def picture(self) -> float:
        """Variance that one more picture that differs would add."""
        return self.one + (0.0 if self.common is None else float(self.common @ self.common))

    @property
    def variance(self) -> float:
        """Of the value, with other noise."""
        return float(self.moves @ self.moves) + self.one

    def bounds(self, design: Design) -> tuple[float, float]:
        """95 %, of a share; NaN without a value."""
        return self.wilson(design.quantile(self.spread, self.picture))

    def symmetric(self, design: Design) -> tuple[float, float]:
        """95 %, of what is no share."""
        half = design.quantile(self.spread, self.picture) * self.variance**0.5
        return self.value - half, self.value + half

    def wilson(self, quantile: float) -> tuple[float, float]:
        """Bounds of a share with another quantile."""
        share = min(1.0, max(0.0, self.value))
        if np.isnan(share) or not self.n:
            return float("nan"), float("nan")
        picture, rarer = self.picture**0.5, min(share, 1 - share)
        rarer = min(0.5, max(picture, rarer + picture / 2))  # half of the one more that is in the variance; without any, all of it
        # Rounding leaves a share of 1e-16 where there is none.
        trials = rarer * (1 - rarer) / self.variance if self.variance > ZERO and rarer > 1e-12 else self.n
        return wilson(share * trials, trials, quantile) or (float("nan"), float("nan"))


def difference(ours: Estimate, theirs: Estimate, design: Design, level: float = LEVEL) -> tuple[float, float, float]:
    """Ours less theirs, two shares of the same units, and its bounds at that level; NaN without a value.

    The bounds of independent shares (MOVER), nearer by as much as the difference varies less than independent ones would. With MOVER's
    own correlation, rows that always move together would keep the part by which their intervals are lopsided.
    """
    found, apart = ours.value - theirs.value, ours.moves - theirs.moves
    spread, common = np.split(apart, 2)
    known = float(common @ common) + ours.one + theirs.one
    quantile = design.quantile(spread, known, level)
    low, high = ours.wilson(quantile)
    other_low, other_high = theirs.wilson(quantile)
    independent = ours.variance + theirs.variance
    left = ((float(spread @ spread) + known) / independent) ** 0.5 if independent > ZERO else 1.0
    down, up = hypot(ours.value - low, other_high - theirs.value), hypot(high - ours.value, theirs.value - other_low)
    return found, found - left * down, found + left * up


def _variances(moves: Array, ones: Array) -> Array:
    """Of the differences of all pairs of statistics, in the order of `np.triu_indices`."""
    first, second = np.triu_indices(len(moves), 1)
    products = moves @ moves.T
    apart = products[first, first] + products[second, second] - 2 * products[first, second]
    found: Array = np.maximum(apart, 0.0) + ones[first] + ones[second]
    return found


def simultaneous_level(estimates: Sequence[Estimate], design: Design) -> float:
    """What each pairwise difference has to hold with, so that all hold at once (max-t; Hothorn, Bretz and Westfall 2008).

    From draws of a multivariate t with the covariance of the estimates. As a level, not a quantile, because differences have degrees of
    freedom of their own (Hasler and Hothorn 2008).
    """
    if len(estimates) < 2 or not design.freedom:
        return LEVEL
    # Rows of the same pictures never differ: they are one.
    _, different = np.unique(np.stack([own.moves for own in estimates]), axis=0, return_index=True)
    moves, ones = (np.array([getattr(estimates[k], name) for k in sorted(different)]) for name in ("moves", "one"))
    variances = _variances(moves, ones)
    first, second = np.triu_indices(len(moves), 1)
    known = variances > ZERO
    if not known.any():
        return LEVEL
    drawn = joint_draws(moves @ moves.T, design)
    worst = np.abs((drawn[first[known]] - drawn[second[known]]) / np.sqrt(variances[known])[:, None]).max(0)
    return max(LEVEL, float(2 * stdtr(design.freedom, np.quantile(worst, LEVEL)) - 1))


def joint_draws(covariance: Array, design: Design) -> Array:
    """[k, DRAWS] draws of how far k statistics would move, from their multivariate t distribution."""
    chance = np.random.default_rng(SEED)
    values, axes = np.linalg.eigh(covariance)
    normal = chance.standard_normal((len(values), DRAWS)) * np.sqrt(np.maximum(values, 0))[:, None]
    found: Array = (axes @ normal) / np.sqrt(chance.chisquare(design.freedom, DRAWS) / design.freedom)
    return found


def rank_intervals(estimates: Sequence[Estimate], design: Design, level: float) -> list[tuple[int, int]]:
    """The ranks that each could have, best first: with `simultaneous_level`, 95 % for all together."""
    better, worse = np.zeros(len(estimates), int), np.zeros(len(estimates), int)
    for i, ours in enumerate(estimates):
        for j, theirs in enumerate(estimates[:i]):
            _, low, high = difference(ours, theirs, design, level)
            worse[i] += high < 0
            better[i] += low > 0
            worse[j] += low > 0
            better[j] += high < 0
    return [(int(1 + worse[k]), int(len(estimates) - better[k])) for k in range(len(estimates))]

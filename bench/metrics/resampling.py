"""Intervals for shares and means: Wilson for one share, a shared percentile bootstrap for everything made of many."""

from __future__ import annotations

from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

DRAWS = 1000
SEED = 20240219


def wilson(successes: int, n: int) -> tuple[float, float] | None:
    """95 % interval for a share of n independent trials (Wilson 1927); None without trials."""
    if n == 0:
        return None
    z, share = NormalDist().inv_cdf(0.975), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # No successes and only successes have exact bounds, which rounding would miss by 1e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def weights(units: int) -> Array:
    """How often each draw takes each unit [1 + DRAWS, units]; row 0 takes each once: it is the data themselves."""
    if units == 0:
        return np.ones((1, 0))
    draws = np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=DRAWS)
    return np.vstack([np.ones(units), draws])


def mean(values: Array, axis: int) -> Array:
    """Mean of what is not NaN along an axis, NaN where there is nothing; unlike `np.nanmean` without a warning."""
    seen = ~np.isnan(values)
    total, n = np.where(seen, values, 0.0).sum(axis), seen.sum(axis)
    share: Array = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
    return share


def interval(draws: Array) -> tuple[float, float, float]:
    """Value, 2.5 % and 97.5 % percentile of [1 + DRAWS] draws made with `weights`; all NaN where the value is."""
    rest = draws[1:][~np.isnan(draws[1:])]
    if np.isnan(draws[0]) or not rest.size:
        return float(draws[0]), np.nan, np.nan
    low, high = np.percentile(rest, [2.5, 97.5])
    return float(draws[0]), float(low), float(high)

"""How far a method's pictures are from a reference as sets of features: kernel distance and Fréchet distance.

Neither is comparable with published KID or FID unless the features are those of the same Inception network. Both take the two
sets as independent samples. Pictures of the same requests are not: they share their noise, which biases the kernel distance
downward (two copies of one set give a negative value), so the reference should come from other seeds.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from cleanfid.fid import frechet_distance as cleanfid_frechet
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from torchmetrics.image.kid import poly_kernel

Features = NDArray[np.floating[Any]]


def kernel_distance(features: Features, reference: Features) -> float | None:
    """Unbiased squared MMD with the kernel (x·y / d + 1)³ (KID, arXiv 1801.01401) of features [n, d] and [m, d].

    Over all rows, not subsets, so without randomness; may be slightly negative. None unless both have two rows.
    Raises ValueError if the dimensions differ or a feature is not finite.
    """
    x, y = _checked(features, reference)
    if min(len(x), len(y)) < 2:
        return None
    # Not torchmetrics' own `poly_mmd`: it divides all three sums by the first set's size, wrong for sets of different sizes.
    within = sum(_off_diagonal_mean(poly_kernel(z, z, degree=3, coef=1.0)) for z in (x, y))
    return float(within - 2 * poly_kernel(x, y, degree=3, coef=1.0).mean())


def frechet_distance(features: Features, reference: Features) -> float | None:
    """Fréchet distance (arXiv 1706.08500) of the Gaussians fitted to features [n, d] and [m, d], at least 0.

    None unless both have 2·d rows: below, the covariances are too poor and the value depends on n more than on the pictures.
    Raises ValueError if the dimensions differ or a feature is not finite.
    """
    x, y = (z.numpy() for z in _checked(features, reference))
    if min(len(x), len(y)) < 2 * x.shape[1]:
        return None
    with warnings.catch_warnings():
        # clean-fid passes `disp` to scipy's sqrtm, deprecated until scipy 1.18 removes it.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Features that never fire make the covariances singular; the trace of the root is right all the same.
        warnings.simplefilter("ignore", LinAlgWarning)
        moments = [moment for z in (x, y) for moment in (z.mean(axis=0), np.cov(z, rowvar=False))]
        return max(0.0, float(cleanfid_frechet(*moments)))


def _checked(features: Features, reference: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets in double precision: the terms of either distance cancel to a small difference."""
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(f"features {features.shape} and {reference.shape} are not two tables of the same dimensions")
    if not (np.isfinite(features).all() and np.isfinite(reference).all()):
        raise ValueError("features are not all finite")
    return torch.from_numpy(features.astype(np.float64)), torch.from_numpy(reference.astype(np.float64))


def _off_diagonal_mean(kernel: torch.Tensor) -> torch.Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))

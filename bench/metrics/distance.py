"""How far a method's pictures are from a reference as sets of features: kernel distance (KID) and Fréchet distance (FID).

Neither is comparable with published KID or FID unless the features are those of the same network after the same resizing. Both
take the two sets as independent samples. Pictures of the same requests are not: they share their noise, which biases the kernel
distance downward (two copies of one set give a negative value), so the reference should come from other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.image.kid import poly_kernel

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over a set of features, in double precision: those of a part of the set can be taken off."""

    n: int
    total: Tensor
    """[d]."""
    products: Tensor
    """[d, d], of outer products."""

    @classmethod
    def of(cls, features: Features) -> Moments:
        """Of [n, d]. Raises ValueError if a feature is not finite."""
        x = _double(features)
        return cls(len(x), x.sum(0), x.T @ x)

    def __sub__(self, part: Moments) -> Moments:
        return Moments(self.n - part.n, self.total - part.total, self.products - part.products)

    @property
    def mean(self) -> Tensor:
        """[d]."""
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """[d, d], unbiased."""
        return (self.products - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features [n, d] of pictures, and their sums, made once where they are needed."""

    features: Features

    @cached_property
    def moments(self) -> Moments:
        """See `Moments`."""
        return Moments.of(self.features)

    @cached_property
    def within(self) -> float:
        """Mean of the cubic kernel over pairs of different pictures."""
        return float(_off_diagonal_mean(_kernel(self.double, self.double)))

    @cached_property
    def root(self) -> Tensor:
        """[d, d], the square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.moments.covariance)
        found: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
        return found

    @cached_property
    def double(self) -> Tensor:
        """[n, d]; the terms of either distance cancel to a small difference. Raises ValueError if a feature is not finite."""
        return _double(self.features)

    def where(self, wanted: NDArray[np.bool_]) -> FeatureSet:
        """The pictures of a mask [n]."""
        return FeatureSet(self.features[wanted])

    def without(self, out: NDArray[np.bool_]) -> FeatureSet:
        """The set without the pictures of a mask [n], whose sums are taken off those of the whole."""
        rest = FeatureSet(self.features[~out])
        rest.__dict__["moments"] = self.moments - Moments.of(self.features[out]) if out.any() else self.moments
        return rest


def kernel_distance(features: FeatureSet, reference: FeatureSet) -> float | None:
    """Unbiased squared MMD with the kernel (x·y / d + 1)³ (KID, arXiv 1801.01401) of features [n, d] and [m, d].

    Over all rows, not subsets, so without randomness; may be slightly negative. None unless both have two rows.
    Raises ValueError if the dimensions differ or a feature is not finite.
    """
    _same_width(features, reference)
    if min(len(features.features), len(reference.features)) < 2:
        return None
    # Not torchmetrics' own `poly_mmd`: it divides all three sums by the first set's size, wrong for sets of different sizes.
    return features.within + reference.within - 2 * float(_kernel(features.double, reference.double).mean())


def frechet_distance(features: FeatureSet, reference: FeatureSet, few: bool = False) -> float | None:
    """Fréchet distance (FID, arXiv 1706.08500) of the Gaussians fitted to features [n, d] and [m, d], at least 0.

    `|μ − ν|² + tr(A + B − 2 (A^½ B A^½)^½)`, the last term from the eigenvalues of a symmetric matrix: faster than the root of
    `A B`, and no offset is needed where features never fire. None unless both have 2·d rows (with `few`: two rows): below, the
    covariances are too poor and the value depends on n more than on the pictures, so that only values of equal n compare.
    Raises ValueError if the dimensions differ or a feature is not finite.
    """
    _same_width(features, reference)
    if min(len(features.features), len(reference.features)) < (2 if few else 2 * features.features.shape[1]):
        return None
    x, y = features.moments, reference.moments
    a, b = x.covariance, y.covariance
    cross = torch.linalg.eigvalsh(reference.root @ a @ reference.root).clamp(min=0).sqrt().sum()
    return max(0.0, float((x.mean - y.mean).square().sum() + a.trace() + b.trace() - 2 * cross))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """[n, m], of KID."""
    return poly_kernel(x, y, degree=3, coef=1.0)


def _same_width(features: FeatureSet, reference: FeatureSet) -> None:
    x, y = features.features, reference.features
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features {tuple(x.shape)} and {tuple(y.shape)} are not two tables of the same dimensions")


def _double(features: Features) -> Tensor:
    if not np.isfinite(features).all():
        raise ValueError("features are not all finite")
    return torch.from_numpy(features.astype(np.float64))


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))

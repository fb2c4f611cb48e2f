"""Which latents stand for a concept at each step: SAeUron's score (public code `SAE/unlearning_utils.py`) and its choices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from methods.sae.statistics import Statistics

EPS = 1e-8


class Features(NamedTuple):
    """Latents per step, padded: entries with an infinite threshold never act."""

    latents: Tensor
    """int64 [T, F]."""
    thresholds: Tensor
    """float32 [T, F]: a latent acts where it is larger than this."""
    factors: Tensor
    """float32 [T, F]: what steering multiplies it by."""


def scores(statistics: Statistics, concept: int) -> Tensor:
    """float32 [T, n]: share of a latent in the concept's mean activation, minus its share in that of all other pictures, pooled.

    `s_i = m_c[i] / (Σ_j m_c[j] + ε) − m_o[i] / (Σ_j m_o[j] + ε)`, step by step.
    """
    means, counts = statistics.means, statistics.counts.float()
    own = means[concept]
    others = counts.clone()
    others[concept] = 0
    rest = torch.einsum("c,ctn->tn", others / others.sum(), means)
    return own / (own.sum(-1, keepdim=True) + EPS) - rest / (rest.sum(-1, keepdim=True) + EPS)


def by_percentile(score: Tensor, percentile: float) -> Tensor:
    """Mask [T, n]: latents strictly above the linearly interpolated quantile (so that at 99.999 one of 20,480 is chosen)."""
    return score > score.double().quantile(percentile / 100, dim=-1, keepdim=True)


def top(score: Tensor, count: int) -> Tensor:
    """Mask [T, n]: the `count` latents of highest score at every step; of equal ones the first."""
    order = score.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, order, True)


def published_features(statistics: Statistics, concept: int, chosen: Tensor, multiplier: float) -> Features:
    """Threshold and factor of the public code (`utils/hooks.py`): mean over all concepts; multiplier · mean of the concept."""
    width = max(1, int(chosen.sum(-1).max()))
    order = chosen.int().sort(dim=-1, descending=True, stable=True).indices[:, :width]
    real = chosen.gather(-1, order)
    thresholds = statistics.means.mean(0).gather(-1, order)
    factors = multiplier * statistics.means[concept].gather(-1, order)
    return Features(order, thresholds.masked_fill(~real, torch.inf), factors)


def union(parts: list[Features]) -> Features:
    """Several concepts at once. A latent chosen by more than one acts where any of them lets it, as strongly as any of them.

    That is: the lowest threshold and the lowest factor; later copies are switched off. (The public code writes such a
    latent twice, in undefined order.)
    """
    latents, thresholds, factors = (torch.cat(tables, -1) for tables in zip(*parts, strict=True))
    same = (latents[:, :, None] == latents[:, None, :]) & thresholds.isfinite()[:, None, :]
    lowest = torch.where(same, thresholds[:, None, :], torch.inf).amin(-1)
    factor = torch.where(same, factors[:, None, :], torch.inf).amin(-1)
    first = same.int().argmax(-1) == torch.arange(latents.shape[1])
    live = thresholds.isfinite() & first
    return Features(latents, lowest.masked_fill(~live, torch.inf), torch.where(live, factor, factors))

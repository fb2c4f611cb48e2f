"""Classifier-free guidance, the default combination of a row's two conditions, and none, for a row of one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bench.interfaces import Guidance


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """`ε = ε_∅ + s (ε_p − ε_∅)` (Ho & Salimans 2022, arXiv 2207.12598)."""

    extra_texts: tuple[str, ...] = ()

    def combine(self, eps: Tensor, step: Tensor, scale: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Guidance.combine`; K = 2."""
        return eps[:, 0] + scale * (eps[:, 1] - eps[:, 0]), state


@dataclass(frozen=True)
class Unguided(Guidance):
    """`ε = ε_p`: the prompt's prediction as it is, as diffusers' pipelines do at a guidance scale of 1 and below."""

    extra_texts: tuple[str, ...] = ()

    def combine(self, eps: Tensor, step: Tensor, scale: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Guidance.combine`; K = 1."""
        return eps[:, 0], state

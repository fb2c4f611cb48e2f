"""SLD: safe latent diffusion, guidance away from the concept where the prompt comes near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Card, Concept, Erasure, FitContext, Guidance, MethodConfig, UnlearningMethod

Strength = Literal["weak", "medium", "strong", "max"]
# (safety scale s_S, warm-up δ in steps of 50, threshold λ, momentum scale s_m, momentum β), Schramowski et al. 2023, table 1.
STRENGTHS: dict[Strength, tuple[float, int, float, float, float]] = {
    "weak": (200, 15, 0.0, 0.0, 0.0),
    "medium": (1000, 10, 0.01, 0.3, 0.4),
    "strong": (2000, 7, 0.025, 0.5, 0.7),
    "max": (5000, 0, 1.0, 0.5, 0.7),
}


@dataclass(frozen=True)
class SafeGuidance(Guidance):
    """Three conditions: unconditional ∅, prompt p, concept S.

    `μ = min(1, s_S |ε_p − ε_S|)` where `ε_p − ε_S < λ`, else 0; `γ = μ (ε_S − ε_∅) + s_m ν`; `ν ← β ν + (1 − β) γ`; from
    step δ on `ε = ε_∅ + s (ε_p − ε_∅ − γ)` (Schramowski et al. 2023, eqs. 3-8).
    """

    extra_texts: tuple[str, ...]
    safety_scale: float
    warmup: int
    """In sampling steps."""
    threshold: float
    momentum_scale: float
    momentum_beta: float

    @property
    def key(self) -> tuple[Any, ...]:
        """All but the text, which only the conditions see."""
        return self.safety_scale, self.warmup, self.threshold, self.momentum_scale, self.momentum_beta

    def init(self, latents: Tensor) -> dict[str, Tensor]:
        """The momentum ν, zero."""
        return {"momentum": torch.zeros_like(latents)}

    def combine(self, eps: Tensor, step: Tensor, scale: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Guidance.combine`; K = 3."""
        none, prompt, concept = eps.unbind(1)
        gap = prompt - concept
        mu = (self.safety_scale * gap.abs()).clamp(max=1) * (gap < self.threshold)
        gamma = mu * (concept - none) + self.momentum_scale * state["momentum"]
        momentum = self.momentum_beta * state["momentum"] + (1 - self.momentum_beta) * gamma
        applied = gamma * (step >= self.warmup)[:, None, None, None]
        return none + scale * (prompt - none - applied), {"momentum": momentum}


class SLDConfig(MethodConfig):
    """Parameters of SLD."""

    strength: Strength = Field("medium", description="Named setting of the paper: weak, medium, strong, max.")


class SLD(UnlearningMethod):
    """Nothing is trained; half as much again to compute (three conditions instead of two)."""

    card = Card(
        title="SLD", paper="arXiv:2211.05105", supports=("style", "object"),
        bibtex="@inproceedings{schramowski2023safe,\n"
        "  title = {Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models},\n"
        "  author = {Schramowski, Patrick and Brack, Manuel and Deiseroth, Bj{\\\"o}rn and Kersting, Kristian},\n"
        "  booktitle = {CVPR},\n  year = {2023},\n}",
        notes="The published warm-up counts steps of 50; it is scaled to the sampling steps of the run.",
    )  # fmt: skip
    Config = SLDConfig
    parts = (SafeGuidance,)
    tuning = {"strength": tuple(STRENGTHS)}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Several concepts are joined with commas into one third condition."""
        scale, warmup, threshold, momentum_scale, beta = STRENGTHS[self.config.strength]
        text = ", ".join(context.texts(concept).target for concept in concepts)
        steps = round(warmup / 50 * context.steps)
        return Erasure(guidance=SafeGuidance((text,), scale, steps, threshold, momentum_scale, beta))


METHOD = SLD

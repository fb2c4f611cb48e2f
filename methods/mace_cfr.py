"""MACE's closed-form refinement: the words around a concept no longer carry it in keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from bench.api import BenchError, Card, Concept, DiffusionModel, Erasure, FitContext, MethodConfig
from methods.common.closed_form import APPLY, Apply, ClosedForm, retained_texts, solve
from methods.common.texts import name_pair, positions_of

FRAMES = (
    "{}", "{}.", "a {}", "the {}", "this is {}", "here is {}", "a view of {}", "a small {}", "a large {}", "{} and more",
)  # fmt: skip
"""Contexts of the concept's phrases: three phrases make about as many prompts as the authors use, 30. The words are this project's."""


class MACECFRConfig(MethodConfig):
    """Parameters of MACE's refinement."""

    regulariser: float = Field(1e3, gt=0, description="lambda, the pull towards the unedited weights.")
    preserve_scale: float = Field(0.0, ge=0, description="s, the weight of the retained texts. Published for objects: no prior.")
    apply: Apply = Field("text", description=APPLY)


class MACECFR(ClosedForm):
    """`W' = (λ W + Σ W e_new e_oldᵀ + s Σ W r rᵀ)(λ I + Σ e_old e_oldᵀ + s Σ r rᵀ)⁻¹` over words beside the concept."""

    card = Card(
        title="MACE, closed-form refinement alone", paper="arXiv:2403.06135", supports=("style", "object"),
        bibtex="@inproceedings{lu2024mace,\n  title = {{MACE}: Mass Concept Erasure in Diffusion Models},\n"
        "  author = {Lu, Shilin and Wang, Zilan and Li, Leyang and Liu, Yanzhu and Kong, Adams Wai-Kin},\n"
        "  booktitle = {CVPR},\n  year = {2024},\n}",
        notes="The first of MACE's stages; without its adapters and their fusion the concept's own token keeps its meaning. Written from"
        " the formula alone. Prompts are this project's, the end mark and padding count as words, retained texts stand in for cached"
        " priors.",
    )  # fmt: skip
    Config = MACECFRConfig
    tuning = {"regulariser": (1e-1, 1e1, 1e3), "preserve_scale": (0.0, 0.1, 1.0)}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """All concepts enter one solve."""
        texts = [context.texts(concept) for concept in concepts]
        pairs = [
            _others(context.model, frame.format(old), frame.format(new), *name_pair(text))
            for text in texts for old, new in text.pairs for frame in FRAMES
        ]  # fmt: skip
        retained = context.model.text_states(["", *retained_texts(texts, "MACE-CFR")]).flatten(0, 1)
        matrix = solve(
            torch.cat([old for old, _ in pairs]), torch.cat([new for _, new in pairs]), retained, 1.0, self.config.preserve_scale,
            self.config.regulariser,
        )  # fmt: skip
        return self.erasure(context.model, matrix, {"prompts": len(pairs)})


def _others(model: DiffusionModel, text: str, anchored: str, name: str, anchor: str) -> tuple[Tensor, Tensor]:
    """States [n, D] of all positions but the name's, in the text and in that with the anchor, as far as both have them."""
    old, new = (
        _without(states, positions_of(model, word, own))
        for states, word, own in zip(model.text_states([text, anchored]), (name, anchor), (text, anchored), strict=True)
    )
    length = min(len(old), len(new))
    return old[:length], new[:length]


def _without(states: Tensor, positions: Sequence[int]) -> Tensor:
    if not positions:
        raise BenchError("A phrase of the suite does not hold its concept's name: MACE-CFR cannot tell the words beside it.")
    return states[[k for k in range(len(states)) if k not in positions]]


METHOD = MACECFR

"""SEOT: what the concept's tokens and the end of the text have in common is weakened, by a singular value decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Card, Concept, Cond, DiffusionModel, Erasure, FitContext, MethodConfig, PlainText, Role, TextEdit, UnlearningMethod
from methods.common.texts import last_subject, name_pair, positions_of, switched

Trigger = Literal["prompt", "published-oracle"]
Words = Literal["name", "from-name"]


@dataclass(frozen=True, eq=False)
class SuppressedText(TextEdit):
    """Rows of a text that names a concept, its tokens' and all from the end mark on, with their large singular values taken away."""

    styles: tuple[str, ...]
    """Names."""
    objects: tuple[str, ...]
    """Names."""
    alpha: float
    start: float
    """Share of the steps before it acts."""
    trigger: str
    """See `SEOTConfig`."""
    words: Words = "name"
    """See `SEOTConfig`."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`; conditional texts alone are edited."""
        plain = PlainText().encode(model, texts, role, steps)
        if role != "conditional":
            return plain
        return [self._edited(model, text, cond, steps) for text, cond in zip(texts, plain, strict=True)]

    def _edited(self, model: DiffusionModel, text: str, cond: Cond, steps: int) -> Cond:
        end = last_subject(model, text) + 1
        negative = [position for position in self._negative(model, text) if position < end]
        if not negative:
            return cond
        edited = cond.embeds[0].clone()
        rows = [*negative, *range(end, len(edited))] if self.words == "name" else [*range(negative[0], len(edited))]
        edited[rows] = weakened(edited[rows], self.alpha)
        return switched(cond, edited, [step >= self.start * steps for step in range(steps)])

    def _negative(self, model: DiffusionModel, text: str) -> list[int]:
        """Positions of the concepts' tokens."""
        found: set[int] = set()
        for name in (*self.styles, *self.objects):
            own = positions_of(model, name, text)
            if own and self.trigger == "published-oracle":
                own = list(range(5, 6 + len(name.split()))) if name in self.styles else [2]
            found.update(own)
        return sorted(found)


def weakened(rows: Tensor, alpha: float) -> Tensor:
    """float32 [n, D] with singular values `σ exp(−α σ)`, float64 inside."""
    u, sigma, v = torch.linalg.svd(rows.double(), full_matrices=False)
    return (u * (sigma * torch.exp(-alpha * sigma)) @ v).to(rows.dtype)


class SEOTConfig(MethodConfig):
    """Parameters of SEOT."""

    alpha: float = Field(1.0, ge=0, description="How strongly large singular values are taken away; 0 changes nothing.")
    start: float = Field(0.2, ge=0, le=1, description="Share of the steps before it acts.")
    trigger: Trigger = Field(
        "prompt",
        description="Tokens taken for the concept's: its name's in the prompt, or those at the places that UnlearnCanvas' script fixes for"
        " its own template, in prompts with the name. Without the name nothing is edited.",
    )
    words: Words = Field(
        "name",
        description="Which words are weakened with the end mark and padding: the name's, as published, or all from the name on, as causal"
        " text encoders let each of them know it.",
    )


class SEOT(UnlearningMethod):
    """Nothing is trained; names are looked for in each prompt."""

    card = Card(
        title="SEOT: get what you want, not what you don't", paper="arXiv:2402.05375", supports=("style", "object"),
        bibtex="@inproceedings{li2024get,\n  title = {Get What You Want, Not What You Don't: Image Content Suppression for Text-to-Image"
        " Diffusion Models},\n  author = {Li, Senmao and van de Weijer, Joost and Hu, Taihang and Khan, Fahad Shahbaz and Hou, Qibin and"
        " Wang, Yaxing and Yang, Jian},\n  booktitle = {ICLR},\n  year = {2024},\n}",
        notes="The soft-weighted decomposition alone; optimising the text at every step is not here. UnlearnCanvas' script samples nothing"
        " but pictures that it knows to show the target, and edits fixed places of its template. No method sees labels here:"
        " trigger=published-oracle has these places and goes by the name in the prompt.",
    )  # fmt: skip
    Config = SEOTConfig
    parts = (SuppressedText,)
    tuning = {"alpha": (0.01, 0.1, 1.0), "start": (0.0, 0.1, 0.2)}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """All concepts' tokens are weakened together."""
        config = self.config
        names = {concept: name_pair(context.texts(concept))[0] for concept in concepts}
        styles, objects = (tuple(name for concept, name in names.items() if concept.kind == kind) for kind in ("style", "object"))
        return Erasure(text=SuppressedText(styles, objects, config.alpha, config.start, config.trigger, config.words))


METHOD = SEOT

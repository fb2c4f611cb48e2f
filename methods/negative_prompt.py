"""Negative prompt: the concept's text takes the place of the unconditional one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bench.api import Card, Concept, Cond, DiffusionModel, Erasure, FitContext, PlainText, Role, TextEdit, UnlearningMethod


@dataclass(frozen=True)
class NegativeText(TextEdit):
    """`ε = ε_n + s (ε_p − ε_n)`: the unconditional slot sees `text`; everything else is plain."""

    unconditional_only: ClassVar[bool] = True
    text: str

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`."""
        return PlainText().encode(model, [self.text] * len(texts) if role == "unconditional" else texts, role, steps)


class NegativePrompt(UnlearningMethod):
    """One pipeline argument, no fit, no cost: what any other method must beat."""

    card = Card(
        title="Negative prompt", paper="", bibtex="", supports=("style", "object"), control=True,
        notes="Practice of Stable Diffusion users; it has no paper of its own.",
    )  # fmt: skip
    parts = (NegativeText,)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Several concepts are joined with commas."""
        return Erasure(text=NegativeText(", ".join(context.texts(concept).target for concept in concepts)))


METHOD = NegativePrompt

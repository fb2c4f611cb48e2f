"""Reword: the prompt says the anchor where it said the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from bench.api import Card, Concept, Cond, DiffusionModel, Erasure, FitContext, MethodConfig, PlainText, Role, TextEdit, UnlearningMethod


@dataclass(frozen=True)
class RewordedText(TextEdit):
    """Prompts with every `old` word replaced by the `new` one at its place."""

    old: tuple[str, ...]
    new: tuple[str, ...]

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`."""
        return PlainText().encode(model, [self._reworded(text) for text in texts], role, steps)

    def _reworded(self, text: str) -> str:
        for old, new in zip(self.old, self.new, strict=True):
            text = text.replace(old, new)
        return text


class RewordConfig(MethodConfig):
    """Parameters of rewording."""

    instead: str = Field("", description="What takes the concept's place. Default: the suite's anchor.")


class Reword(UnlearningMethod):
    """No network is touched: whoever writes the concept in other words gets it."""

    card = Card(
        title="Rewording", paper="https://example.org/rewording", supports=("style", "object"),
        bibtex="@misc{reword,\n  author = {Doe, Jane},\n  title = {Rewording prompts},\n  year = {2026},\n}",
    )  # fmt: skip
    Config = RewordConfig
    parts = (RewordedText,)
    tuning = {"instead": ("", "nothing")}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Nothing is trained."""
        pairs = [context.texts(concept).pairs[0] for concept in concepts]
        new = tuple(self.config.instead or anchor for _, anchor in pairs)
        return Erasure(text=RewordedText(tuple(name for name, _ in pairs), new))

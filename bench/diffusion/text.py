"""Texts to conditions, unedited. Every `Cond` begins here; an edit changes one with `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.diffusion.model import DiffusionModel
from bench.interfaces import Cond, Role, TextEdit


@dataclass(frozen=True)
class PlainText(TextEdit):
    """The text encoders' own states at every step."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`. Of some models the unconditional text, where it is empty, is all zeros."""
        found, variant_at = [], torch.zeros(steps, dtype=torch.int64)
        for text, (states, added) in zip(texts, model.encode(texts), strict=True):
            if role == "unconditional" and not text and model.empty_is_zero:
                states, added = torch.zeros_like(states), {name: torch.zeros_like(value) for name, value in added.items()}
            found.append(Cond(states[None], variant_at, {name: value[None] for name, value in added.items()}))
        return found

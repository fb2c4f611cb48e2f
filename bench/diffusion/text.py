"""Texts to conditions, unedited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.diffusion.model import DiffusionModel
from bench.interfaces import Cond, Role, TextEdit


@dataclass(frozen=True)
class PlainText(TextEdit):
    """The text encoder's own states at every step."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`."""
        return [Cond(states[None], torch.zeros(steps, dtype=torch.int64)) for states in model.text_states(texts)]

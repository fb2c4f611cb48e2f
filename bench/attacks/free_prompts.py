"""What attacks on the text encoder share: prompts of free tokens alone, best first, and the encoder on many of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, Candidate, MethodConfig, PromptBank
from bench.attacks.tokens import Slots, free_slots

ENCODED = 512
"""Prompts encoded at once."""


class FreePromptsConfig(MethodConfig):
    """Parameters that they share."""

    tried: int = Field(10, ge=1, description="Prompts that are judged, the best first.")


class FreePrompts(PromptBank):
    """A search per goal, for prompts of `tokens` tokens (its configuration's) or as many as the text encoder takes."""

    access = "text-encoder"
    reads_request = False

    @property
    def judged(self) -> int:
        """The best prompts."""
        return int(self.config.tried)

    @abstractmethod
    def ranked(self, context: AttackContext, slots: Slots, goal: int) -> Iterable[Tensor]:
        """Prompts int64 [K], the best first."""

    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """See `PromptBank.craft`."""
        slots, found = free_slots(context, min(self.config.tokens, context.model.max_tokens - 2), "replacement"), []
        for goal in range(len(context.goals)):
            tried = [slots.candidate(goal, tokens, 0) for tokens in self.ranked(context, slots, goal)]
            found.append([candidate for candidate in tried if candidate is not None][: self.config.tried])
            context.progress((goal + 1) / len(context.goals), "prompts")
        return found


@torch.no_grad()
def encoded(context: AttackContext, slots: Slots, goal: int, prompts: Tensor) -> Iterable[Any]:
    """The text encoder's output on prompts int64 [n, K] of a goal, `ENCODED` at a time."""
    for part in prompts.to(slots.table.device).split(ENCODED):
        yield context.model.text_encoder(slots.filled(torch.full((len(part),), goal), part))

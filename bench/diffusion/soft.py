"""Texts whose tokens are embeddings of one's own: a gradient reaches them, or they are in no vocabulary."""

from __future__ import annotations

import hashlib

from torch import Tensor

DECIMALS = 6
"""Of learned embeddings in files."""


class SoftText(str):
    """A text that comes with its tokens and their embeddings. Two are equal only if they are one, whatever they read.

    Who cuts or joins it gets a plain text back, through which no gradient goes.
    """

    __slots__ = ("embeds", "ids")
    ids: Tensor
    """int64 [L] with marks and padding; decisions that look at tokens (SEOT, SAFREE, SPM) see these."""
    embeds: Tensor
    """float32 [L, d], what the text encoder reads in place of its own embeddings of `ids`."""

    def __new__(cls, text: str, ids: Tensor, embeds: Tensor) -> SoftText:
        """As a text that says what the tokens spell."""
        found = super().__new__(cls, text)
        found.ids, found.embeds = ids, embeds
        return found

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


def written(embedding: Tensor) -> Tensor:
    """A learned embedding [d] as files have it, float32 of `DECIMALS`: with these values it is judged, named and replayed."""
    return embedding.detach().cpu().double().round(decimals=DECIMALS).float()


def learned_name(embedding: Tensor) -> str:
    """What a learned embedding float32 [d] is called in prompts: a function of its values."""
    data = embedding.detach().float().cpu().contiguous().numpy().tobytes()
    return f"<learned-{hashlib.sha256(data).hexdigest()[:12]}>"

"""What several methods ask of a concept's texts and of conditions that change by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.api import ConceptTexts, Cond, DiffusionModel


def name_pair(texts: ConceptTexts) -> tuple[str, str]:
    """The concept's bare name and its anchor's: the shortest of the pairs of phrases."""
    return min(texts.pairs, key=lambda pair: len(pair[0]))


def word_tokens(model: DiffusionModel, text: str) -> list[int]:
    """The tokens of a text alone, without marks and padding, cut to the model's length."""
    ids, length = model.tokenize([text])[0].tolist(), last_subject(model, text)
    return ids[1 : length + 1]


def last_subject(model: DiffusionModel, text: str) -> int:
    """Position of the last token before the end mark (the begin mark for an empty text)."""
    return int((model.tokenize([text])[0] == model.tokenizer.eos_token_id).nonzero()[0]) - 1


def positions_of(model: DiffusionModel, words: str, text: str) -> list[int]:
    """Positions in the text's states of all tokens of all places where it has the words."""
    wanted, own = word_tokens(model, words), word_tokens(model, text)
    starts = [k for k in range(len(own) - len(wanted) + 1) if wanted and own[k : k + len(wanted)] == wanted]
    return sorted({1 + start + k for start in starts for k in range(len(wanted))})


def switched(cond: Cond, edited: Tensor, edited_at: Sequence[bool]) -> Cond:
    """A condition of one variant with `edited` [L, D] in its place at those steps where `edited_at` says so."""
    added = {name: value.expand(2, *value.shape[1:]) for name, value in cond.added.items()}
    variant_at = torch.tensor(edited_at, dtype=torch.int64)
    return replace(cond, embeds=torch.stack([cond.embeds[0], edited]), variant_at=variant_at, added=added)

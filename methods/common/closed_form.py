"""The closed-form edit of cross-attention keys and values that UCE, RECE and MACE's refinement share, as one map of text states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bench.api import (
    BenchError,
    ConceptTexts,
    Cond,
    DiffusionModel,
    Erasure,
    PlainText,
    Role,
    TextEdit,
    UnlearningMethod,
    Weights,
)  # fmt: skip
from methods.common.texts import last_subject

Apply = Literal["text", "weights"]
APPLY = "Edit the text states (row-wise) or the weights: the same up to rounding."


@dataclass(frozen=True, eq=False)
class TextMap(TextEdit):
    """Text states c become M c. As `W' = W M` for every key and value matrix, this is the same edit as the weights'."""

    matrix: Tensor
    """float32 [D, D]."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`; every role is mapped, as changed weights would."""
        plain = PlainText().encode(model, texts, role, steps)
        return [replace(cond, embeds=cond.embeds @ self.matrix.T.to(cond.embeds.device)) for cond in plain]


class ClosedForm(UnlearningMethod):
    """A method whose edit is one map M of text states. Its configuration has a field `apply`."""

    parts = (TextMap,)

    @property
    def row_wise(self) -> bool:
        """As a text map it shares UNet calls."""
        return bool(self.config.apply == "text")

    def erasure(self, model: DiffusionModel, matrix: Tensor, notes: Mapping[str, Any]) -> Erasure:
        """The map `matrix` float32 [D, D] as text states or as weights."""
        if self.config.apply == "weights":
            return Erasure(weights=Weights({name: weight @ matrix for name, weight in cross_attention_weights(model)}), notes=notes)
        return Erasure(text=TextMap(matrix), notes=notes)


def solve(edited: Tensor, guides: Tensor, retained: Tensor, erase_scale: float, preserve_scale: float, regulariser: float) -> Tensor:
    """M in `W' = W M` of UCE's closed form (Gandikota et al. 2024, eq. 7 with v* = W g), float64 inside.

    `M = (λ I + a Σ g cᵀ + b Σ r rᵀ)(λ I + a Σ c cᵀ + b Σ r rᵀ)⁻¹`; rows of `edited` c, `guides` g [n, D] and `retained`
    r [m, D]. It holds for all matrices at once, as the formula multiplies W from the right only.
    """
    c, g, r = edited.double(), guides.double(), retained.double()
    kept = regulariser * torch.eye(c.shape[1], dtype=torch.float64, device=c.device) + preserve_scale * r.T @ r
    numerator, denominator = kept + erase_scale * g.T @ c, kept + erase_scale * c.T @ c
    return torch.linalg.solve(denominator, numerator, left=False).to(edited.dtype)


def cross_attention_weights(model: DiffusionModel) -> Iterator[tuple[str, Tensor]]:
    """(name, weight [d, D]) of every cross-attention key and value projection."""
    for name, weight in model.unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            yield f"unet.{name}", weight


def retained_texts(texts: Sequence[ConceptTexts], name: str) -> list[str]:
    """What stays whichever of the concepts goes: texts that retain one but name another are dropped. BenchError if none is left."""
    found = sorted(set.intersection(*(set(text.retain) for text in texts)))
    if not found:
        raise BenchError(f"{name} found no text to retain: erase fewer concepts at once.")
    return found


def aligned_pair(model: DiffusionModel, target: str, anchor: str) -> tuple[Tensor, Tensor]:
    """Edited and guide states [n, D] each: from the last subject token to the end, as far as both texts have them."""
    edited, guide = model.text_states([target, anchor])
    start, other = last_subject(model, target), last_subject(model, anchor)
    length = min(len(edited) - start, len(guide) - other)
    return edited[start : start + length], guide[other : other + length]


def gram(model: DiffusionModel) -> Tensor:
    """`G = Σ WᵀW` float64 [D, D] over every cross-attention key and value matrix W [d, D]."""
    return sum((weight.double().T @ weight.double() for _, weight in cross_attention_weights(model)), start=torch.zeros(()))


def revive(states: Tensor, matrix: Tensor, gram: Tensor, regulariser: float) -> Tensor:
    """The embedding c' that brings a concept back through edited weights `W = W⁰ M` (Gong et al. 2024, RECE), float64 inside.

    It minimises `Σ ‖W c' − W⁰ c‖² + λ ‖c'‖²`, so that `c' = (λ I + Mᵀ G M)⁻¹ Mᵀ G c`; rows c of `states` [n, D] → [n, D].
    """
    m = matrix.double()
    seen = m.T @ gram
    identity = torch.eye(len(m), dtype=torch.float64, device=m.device)
    return torch.linalg.solve(regulariser * identity + seen @ m, seen @ states.double().T).T.to(states.dtype)

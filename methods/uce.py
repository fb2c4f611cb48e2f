"""UCE: unified concept editing, a closed-form edit of all cross-attention keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import (
    BenchError,
    Card,
    Concept,
    Cond,
    DiffusionModel,
    Erasure,
    FitContext,
    MethodConfig,
    PlainText,
    Role,
    TextEdit,
    UnlearningMethod,
    Weights,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TextMap(TextEdit):
    """Text states c become M c. As `W' = W M` for every key and value matrix, this is the same edit as the weights'."""

    matrix: Tensor
    """float32 [D, D]."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`; every role is mapped, as changed weights would."""
        plain = PlainText().encode(model, texts, role, steps)
        return [replace(cond, embeds=cond.embeds @ self.matrix.T.to(cond.embeds.device)) for cond in plain]


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


class UCEConfig(MethodConfig):
    """Parameters of UCE."""

    erase_scale: float = Field(1.0, gt=0, description="a, the weight of the edited texts.")
    preserve_scale: float = Field(1.0, ge=0, description="b, the weight of the retained texts.")
    regulariser: float = Field(0.5, gt=0, description="lambda, the pull towards the unedited weights.")
    tokens: Literal["aligned", "last"] = Field(
        "aligned",
        description="Edited states: from the last subject token to the end, right-aligned (first code), or that token alone (new code).",
    )
    apply: Literal["text", "weights"] = Field(
        "text", description="Edit the text states (row-wise) or the weights: the same up to rounding."
    )


class UCE(UnlearningMethod):
    """Maps the concept's text to its anchor's in every key and value matrix, and holds the retained texts."""

    card = Card(
        title="UCE", paper="arXiv:2308.14761", supports=("style", "object"),
        bibtex="@inproceedings{gandikota2024unified,\n  title = {Unified Concept Editing in Diffusion Models},\n"
        "  author = {Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna and Bau, David},\n"
        "  booktitle = {WACV},\n  year = {2024},\n}",
        notes="Default: the tokens of the authors' first code with the weights (a = b = 1, lambda = 0.5) of their newer code.",
    )  # fmt: skip
    Config = UCEConfig
    parts = (TextMap,)
    tuning = {"erase_scale": (0.3, 1.0, 3.0), "preserve_scale": (0.1, 1.0), "tokens": ("aligned", "last")}

    @property
    def row_wise(self) -> bool:
        """As a text map it shares UNet calls."""
        return bool(self.config.apply == "text")

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """All concepts enter one solve; texts that retain one concept but name another are dropped."""
        model = context.model
        texts = [context.texts(concept) for concept in concepts]
        pairs = [self._pair(model, *pair) for text in texts for pair in text.pairs]
        retained = sorted(set.intersection(*(set(text.retain) for text in texts)))
        if not retained:
            raise BenchError("UCE found no text to retain: erase fewer concepts at once.")
        if self.config.tokens == "last":
            retained = [text.rstrip(".") for text in retained]  # or the last token would be the full stop
        states = model.text_states(["", *retained])
        if self.config.tokens == "last":
            last = [self._last_subject(model, text) for text in ["", *retained]]
            states = torch.stack([state[position] for state, position in zip(states, last, strict=True)])
        matrix = solve(
            torch.cat([c for c, _ in pairs]), torch.cat([g for _, g in pairs]), states.flatten(0, -2),
            self.config.erase_scale, self.config.preserve_scale, self.config.regulariser,
        )  # fmt: skip
        notes = {"retained_texts": len(retained)}
        if self.config.apply == "weights":
            return Erasure(weights=Weights({name: weight @ matrix for name, weight in cross_attention_weights(model)}), notes=notes)
        return Erasure(text=TextMap(matrix), notes=notes)

    @staticmethod
    def _last_subject(model: DiffusionModel, text: str) -> int:
        """Position of the last token before the end mark (the begin mark for an empty text)."""
        return int(model.tokenizer([text], truncation=True, return_tensors="pt").attention_mask.sum()) - 2

    def _pair(self, model: DiffusionModel, target: str, anchor: str) -> tuple[Tensor, Tensor]:
        """Edited and guide states, [n, D] each."""
        edited, guide = model.text_states([target, anchor])
        start, other = self._last_subject(model, target), self._last_subject(model, anchor)
        if self.config.tokens == "last":
            return edited[start][None], guide[other][None]
        length = min(len(edited) - start, len(guide) - other)
        return edited[start : start + length], guide[other : other + length]


METHOD = UCE

"""UCE: unified concept editing, a closed-form edit of all cross-attention keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Card, Concept, DiffusionModel, Erasure, FitContext, MethodConfig
from methods.common.closed_form import APPLY, Apply, ClosedForm, aligned_pair, retained_texts, solve
from methods.common.texts import last_subject


class UCEConfig(MethodConfig):
    """Parameters of UCE."""

    erase_scale: float = Field(1.0, gt=0, description="a, the weight of the edited texts.")
    preserve_scale: float = Field(1.0, ge=0, description="b, the weight of the retained texts.")
    regulariser: float = Field(0.5, gt=0, description="lambda, the pull towards the unedited weights.")
    tokens: Literal["aligned", "last"] = Field(
        "aligned",
        description="Edited states: from the last subject token to the end, right-aligned (first code), or that token alone (new code).",
    )
    apply: Apply = Field("text", description=APPLY)


class UCE(ClosedForm):
    """Maps the concept's text to its anchor's in every key and value matrix, and holds the retained texts."""

    card = Card(
        title="UCE", paper="arXiv:2308.14761", supports=("style", "object"),
        bibtex="@inproceedings{gandikota2024unified,\n  title = {Unified Concept Editing in Diffusion Models},\n"
        "  author = {Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna and Bau, David},\n"
        "  booktitle = {WACV},\n  year = {2024},\n}",
        notes="Default: the tokens of the authors' first code with the weights (a = b = 1, lambda = 0.5) of their newer code.",
    )  # fmt: skip
    Config = UCEConfig
    tuning = {"erase_scale": (0.3, 1.0, 3.0), "preserve_scale": (0.1, 1.0), "tokens": ("aligned", "last")}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """All concepts enter one solve; texts that retain one concept but name another are dropped."""
        model = context.model
        texts = [context.texts(concept) for concept in concepts]
        pairs = [self._pair(model, *pair) for text in texts for pair in text.pairs]
        retained = retained_texts(texts, "UCE")
        if self.config.tokens == "last":
            retained = [text.rstrip(".") for text in retained]  # or the last token would be the full stop
        states = model.text_states(["", *retained])
        if self.config.tokens == "last":
            last = [last_subject(model, text) for text in ["", *retained]]
            states = torch.stack([state[position] for state, position in zip(states, last, strict=True)])
        matrix = solve(
            torch.cat([c for c, _ in pairs]), torch.cat([g for _, g in pairs]), states.flatten(0, -2),
            self.config.erase_scale, self.config.preserve_scale, self.config.regulariser,
        )  # fmt: skip
        return self.erasure(model, matrix, {"retained_texts": len(retained)})

    def _pair(self, model: DiffusionModel, target: str, anchor: str) -> tuple[Tensor, Tensor]:
        """Edited and guide states, [n, D] each."""
        if self.config.tokens == "aligned":
            return aligned_pair(model, target, anchor)
        edited, guide = model.text_states([target, anchor])
        return edited[last_subject(model, target)][None], guide[last_subject(model, anchor)][None]


METHOD = UCE

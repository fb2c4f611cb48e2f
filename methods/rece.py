"""RECE: reliable and efficient concept erasure, UCE again on the embedding that would bring the concept back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from bench.api import Card, Concept, Erasure, FitContext, MethodConfig
from methods.common.closed_form import APPLY, Apply, ClosedForm, aligned_pair, gram, retained_texts, revive, solve
from methods.common.texts import name_pair


class RECEConfig(MethodConfig):
    """Parameters of RECE."""

    epochs: int = Field(1, ge=0, description="Times that a reviving embedding is found and erased; 0 is UCE. Published: 1 to 3.")
    revival_regulariser: float = Field(1e-3, gt=0, description="lambda, the pull of the reviving embedding to 0. Published: 1e-3 or 1e-1.")
    guide: Literal["empty", "anchor"] = Field("empty", description="What reviving embeddings become: the empty text, or the anchor.")
    erase_scale: float = Field(1.0, gt=0, description="The weight of the edited texts.")
    preserve_scale: float = Field(0.1, ge=0, description="lambda 1, the weight of the retained texts.")
    regulariser: float = Field(0.1, gt=0, description="lambda 2, the pull towards the weights before.")
    apply: Apply = Field("text", description=APPLY)


class RECE(ClosedForm):
    """`W_{k+1} = W_k M_k`, where M_k erases what W_k still hears as the concept; W_0 are UCE's weights."""

    card = Card(
        title="RECE", paper="arXiv:2407.12383", supports=("style", "object"),
        bibtex="@inproceedings{gong2024reliable,\n  title = {Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models},\n"
        "  author = {Gong, Chao and Chen, Kai and Wei, Zhipeng and Chen, Jingjing and Jiang, Yu-Gang},\n"
        "  booktitle = {ECCV},\n  year = {2024},\n}",
        notes="A fixed number of epochs: the authors keep the epoch that a detector likes best. Starts from UCE with this configuration's"
        " weights; defaults are those for styles and hard objects.",
    )  # fmt: skip
    Config = RECEConfig
    tuning = {"epochs": (1, 3), "revival_regulariser": (1e-3, 1e-1), "guide": ("empty", "anchor")}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """All concepts enter every solve."""
        model, config = context.model, self.config
        scales = config.erase_scale, config.preserve_scale, config.regulariser
        texts = [context.texts(concept) for concept in concepts]
        retained = model.text_states(["", *retained_texts(texts, "RECE")]).flatten(0, 1)
        pairs = [aligned_pair(model, *pair) for text in texts for pair in text.pairs]
        matrix = solve(torch.cat([c for c, _ in pairs]), torch.cat([g for _, g in pairs]), retained, *scales)
        names, anchors = zip(*(name_pair(text) for text in texts), strict=True)
        states = model.text_states(names).flatten(0, 1)
        guides = model.text_states(anchors if config.guide == "anchor" else [""] * len(names)).flatten(0, 1)
        heard = gram(model)
        for _ in range(config.epochs):
            matrix = matrix @ solve(revive(states, matrix, heard, config.revival_regulariser), guides, retained, *scales)
        return self.erasure(model, matrix, {"retained_texts": len(retained) // model.max_tokens - 1})


METHOD = RECE

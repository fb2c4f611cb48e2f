"""SAFREE: prompt tokens near the concept are projected out of its subspace, for as many steps as the prompt needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
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
)  # fmt: skip
from methods.common.texts import name_pair, switched, word_tokens

MASK = 0
"""The token that stands in for a masked one, as in the public code: "!" in CLIP's vocabulary."""
CURVES = {"general": (5.333, 2.5), "artist": (5.5, 3.5)}
"""(t0, k) of the self-validating filter."""


@dataclass(frozen=True, eq=False)
class ProjectedText(TextEdit):
    """Trigger tokens' states e become `(I − P_C) P_I e` at the steps that the self-validating filter allows."""

    concepts: Tensor
    """float32 [K, P], pooled texts of the concepts; they span P_C. Without any, nothing is edited."""
    alpha: float
    up_to: int
    curve: str
    """One of `CURVES`; empty: at every step."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`; conditional texts alone are edited. A gradient goes through the projected states, not the projectors."""
        plain = PlainText().encode(model, texts, role, steps)
        if role != "conditional":
            return plain
        return [self._edited(model, text, cond, steps) for text, cond in zip(texts, plain, strict=True)]

    def _edited(self, model: DiffusionModel, text: str, cond: Cond, steps: int) -> Cond:
        if not len(self.concepts) or not word_tokens(model, text):
            return cond
        masked, width, states = masked_texts(model, text), self.concepts.shape[1], cond.embeds[0]
        outside = torch.eye(width, dtype=torch.float64, device=masked.device) - span(self.concepts)
        triggers = 1 + find_triggers(masked @ outside, self.alpha)
        own = states[:, -width:].double()  # SDXL: the second encoder's
        projected = own @ span(masked) @ outside
        edited = states.clone()
        edited[triggers, -width:] = projected[triggers].to(states)
        real = slice(0, len(masked) + 2)
        beta = 1 - float(torch.cosine_similarity(projected[real], own[real]).mean().detach())
        last = last_step(beta, self.up_to, *CURVES[self.curve]) if self.curve else steps
        return switched(cond, edited, [step <= last for step in range(steps)])


@torch.no_grad()
def pooled(model: DiffusionModel, ids: Tensor) -> Tensor:
    """int64 [n, L] → float64 [n, P]: the state at the end mark; of SDXL the second encoder's, projected. BenchError for other widths."""
    if model.text_encoder_2 is None:
        return model.text_encoder(ids).pooler_output.double()
    found = model.text_encoder_2(ids)
    if found.text_embeds.shape[1] != found.last_hidden_state.shape[2]:
        raise BenchError("SAFREE projects text states by pooled texts, and this model's second text encoder has other widths for both.")
    return found.text_embeds.double()


def span(rows: Tensor) -> Tensor:
    """The projector float64 [P, P] on what rows [n, P] of single precision span."""
    rows = rows.double()
    return torch.linalg.pinv(rows, rtol=1e-5) @ rows


def masked_texts(model: DiffusionModel, text: str) -> Tensor:
    """float64 [n, P]: pooled texts with one of the n tokens masked each."""
    ids = model.tokenize([text]).to(model.device)
    places = torch.arange(len(word_tokens(model, text)), device=ids.device)
    found = ids.repeat(len(places), 1)
    found[places, places + 1] = MASK
    return pooled(model, found)


def find_triggers(masked: Tensor, alpha: float) -> Tensor:
    """int64: rows of [n, P], outside the concept's subspace, that are at least `1 + alpha` times as long as the others' mean.

    Without its trigger a text is farther from the concept. A text's only token has no others, and is one as in the public code.
    """
    length = masked.norm(dim=1)
    others = (length.sum() - length) / max(1, len(length) - 1)
    return (length >= (1 + alpha) * others).nonzero()[:, 0]


def last_step(beta: float, up_to: int, midpoint: float, slope: float) -> int:
    """`round(up_to · σ(2 k (10 β − t0)))`, counted from 0: the more a projection changes a text, the longer it is used."""
    return round(up_to / (1 + exp(-2 * slope * (10 * beta - midpoint))))


class SAFREEConfig(MethodConfig):
    """Parameters of SAFREE."""

    alpha: float = Field(0.01, ge=0, description="How much farther than others a token must be to be a trigger.")
    up_to: int = Field(10, ge=0, description="The last step, from 0, that the self-validating filter can allow.")
    filter: Literal["by-kind", "published-code", "none"] = Field(
        "by-kind",
        description="Steps with projected text: by the curve for artists where styles go, else by the general one; that for everything, as"
        " the public code's test for artists never holds; all steps.",
    )


class SAFREE(UnlearningMethod):
    """Nothing is trained; the fit encodes the concepts' names."""

    card = Card(
        title="SAFREE: training-free and adaptive guard for safe text-to-image and video generation", paper="arXiv:2410.12761",
        supports=("style", "object"),
        bibtex="@inproceedings{yoon2025safree,\n  title = {{SAFREE}: Training-Free and Adaptive Guard for Safe Text-to-Image And Video"
        " Generation},\n  author = {Yoon, Jaehong and Yu, Shoubin and Patil, Vaidehi and Yao, Huaxiu and Bansal, Mohit},\n"
        "  booktitle = {ICLR},\n  year = {2025},\n}",
        notes="The text part with its self-validating filter; latent re-attention is not here. End mark and padding keep what they say of"
        " the concept, as in the public code.",
    )  # fmt: skip
    Config = SAFREEConfig
    parts = (ProjectedText,)
    tuning = {"alpha": (0.0, 0.01, 0.05), "filter": ("by-kind", "none")}

    @torch.no_grad()
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """All concepts span one subspace."""
        names = [name_pair(context.texts(concept))[0] for concept in concepts]
        found = pooled(context.model, context.model.tokenize(names).to(context.model.device))
        styles = self.config.filter == "by-kind" and all(concept.kind == "style" for concept in concepts)
        curve = "" if self.config.filter == "none" else "artist" if styles else "general"
        return Erasure(text=ProjectedText(found.float(), self.config.alpha, self.config.up_to, curve), notes={"names": names})


METHOD = SAFREE

"""Concept ablation: what the model predicts for the concept becomes what it predicts for its anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.api import Card, Concept, Erasure, FitContext, MethodConfig, UnlearningMethod
from methods.common.finetuning import Part, Student, Texts, distance, parameter_names


class CAConfig(MethodConfig):
    """Parameters of concept ablation."""

    preset: Literal["corrected", "published-code"] = Field(
        "corrected", description="published-code: captions of objects as UnlearnCanvas' public configuration makes them (docs/methods.md)."
    )
    variant: Literal["model", "noise"] = Field(
        "model", description="What the concept's caption is to predict: what its anchor's does, or the noise itself."
    )
    teacher: Literal["current", "frozen"] = Field(
        "current", description="Whose prediction that is: as published the trained weights' own, or the unedited model's."
    )
    train_method: Part = Field("x-strict", description="What is trained: x-strict keys and values of cross-attention, x all of it, u, all.")
    pictures: int = Field(200, ge=1, description="Pictures of each concept's anchor, made by the unedited model.")
    iterations: int = Field(1000, ge=0, description="Optimiser steps.")
    batch: int = Field(4, ge=1, description="Pictures per optimiser step.")
    learning_rate: float = Field(8e-6, gt=0, description="Of AdamW: 2e-6 times the batch, as published.")
    weight_decay: float = Field(1e-2, ge=0, description="Of AdamW.")


class CA(UnlearningMethod):
    """`‖ε_θ(z_t, t, c*) − sg ε(z_t, t, c)‖²`, z_t noised pictures of the anchor, c their captions, c* the same with the concept.

    The begin mark's keys and values get no gradient, as in the authors' attention processor. Crops and the mask of the authors'
    augmentation, and their optional prior loss, are not here.
    """

    card = Card(
        title="Concept ablation", paper="arXiv:2303.13516", supports=("style", "object"),
        bibtex="@inproceedings{kumari2023ablating,\n  title = {Ablating Concepts in Text-to-Image Diffusion Models},\n"
        "  author = {Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and Shechtman, Eli and Zhang, Richard and Zhu, Jun-Yan},\n"
        "  booktitle = {ICCV},\n  year = {2023},\n}",
        notes="published-code: UnlearnCanvas' configuration for objects takes captions for styles: the anchor's keep the object, and the "
        "concept's say “, in the style of An image of …”.",
    )  # fmt: skip
    Config = CAConfig
    row_wise = False
    quick = {"pictures": 4, "batch": 2, "iterations": 2, "learning_rate": 1e-2}
    tuning = {"learning_rate": (1e-4, 3e-4, 1e-3), "iterations": (100, 200)}

    def prepare(self, context: FitContext, concepts: Sequence[Concept]) -> None:
        """Sample the pictures of anchors."""
        for concept in concepts:
            context.generate(self.captions(context, concept)[1])

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Pictures for several concepts are trained on together."""
        config, model = self.config, context.model
        student = Student(context, parameter_names(model.unet, config.train_method))
        pairs = [self.captions(context, concept) for concept in concepts]
        latents = torch.cat([context.generate(anchors) for _, anchors in pairs])
        targets, anchors = (Texts.join(Texts.of(model, own[k]) for own in pairs) for k in (0, 1))

        def loss() -> Tensor:
            pick = student.pick(len(latents), config.batch)
            at = student.noisy(latents[pick])
            wanted = at.target
            if config.variant == "model":
                teacher = student.now if config.teacher == "current" else student.frozen
                wanted = teacher(at, anchors.take(pick))
            return distance(student.predict(at, targets.take(pick)), wanted)

        with _begin_mark_fixed(model.unet):
            notes = student.train(loss, config.iterations, config.learning_rate, weight_decay=config.weight_decay)
        return student.erasure(notes)

    def captions(self, context: FitContext, concept: Concept) -> tuple[list[str], list[str]]:
        """(with the concept, of the anchor), one pair for each picture."""
        shown, anchored = map(list, zip(*context.captions(concept, self.config.pictures), strict=True))
        if self.config.preset == "published-code" and concept.kind == "object":
            return [f"{text.rstrip('.')}, in the style of {context.texts(concept).target}" for text in shown], shown
        return shown, anchored


@contextmanager
def _begin_mark_fixed(unet: nn.Module) -> Iterator[None]:
    """Keys and values of the first token without gradient."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)

    own = [module for name, module in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    handles = [module.register_forward_hook(hook) for module in own]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


METHOD = CA

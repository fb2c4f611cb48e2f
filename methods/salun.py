"""SalUn: fine-tuning of the weights that a concept's gradient is largest at, towards what the model makes of the anchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Assets, Card, Concept, Erasure, FitContext, UnlearningMethod
from methods.common.finetuning import Student, Texts, distance, parameter_names
from methods.common.forgetting import Forgetting, ForgettingConfig, examples_digest


class SalUnConfig(ForgettingConfig):
    """Parameters of SalUn."""

    published: ClassVar[Mapping[str, Any]] = {
        "data": "first-four", "mask": "least-salient", "mask_density": 0.4, "mask_guidance": 0.0, "mask_applied": False, "iterations": 30,
    }  # fmt: skip
    retain_weight: float = Field(1.0, ge=0, description="α, of the loss on retained pictures.")
    mask: Literal["salient", "least-salient"] = Field(
        "salient", description="Weights that may change: those of the largest gradients or, as the public script ranks, of the smallest."
    )
    mask_density: float = Field(0.5, gt=0, le=1, description="Share of the trained weights that may change.")
    mask_guidance: float = Field(7.5, ge=0, description="w in the loss whose gradient ranks. The public script's is without effect: 0.")
    mask_batches: int = Field(16, ge=1, description="Batches whose gradients are summed to rank weights.")
    mask_applied: bool = Field(True, description="Whether the mask acts. In the public script it never does.")


class SalUn(UnlearningMethod):
    """`‖ε_θ(z_f, c_f) − sg ε_θ(z_f, c_anchor)‖² + α L_DM(retain)`, gradients times `m = 1[|Σ ∇ L_GA| in the top p]`.

    `L_GA = −‖ε − ((1 + w) ε_θ(z_f, c_f) − w ε_θ(z_f, ∅))‖²`. z_f are noised pictures of the concept. What is retained are pictures of
    all else (public script: photos of every object), what takes the concept's place is named by the suite.
    """

    card = Card(
        title="SalUn", paper="arXiv:2310.12508", supports=("style", "object"),
        bibtex="@inproceedings{fan2024salun,\n"
        "  title = {{SalUn}: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
        "Generation},\n"
        "  author = {Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia},\n"
        "  booktitle = {ICLR},\n  year = {2024},\n}",
        notes="published-code: UnlearnCanvas' script keeps the least salient weights, without guidance, applies no mask, and trains on "
        "four pictures. Sum of gradients before the absolute value, as published.",
    )  # fmt: skip
    Config = SalUnConfig
    row_wise = False
    quick = {"pictures": 4, "batch": 2, "iterations": 2, "learning_rate": 1e-2, "mask_batches": 1}
    tuning = {"learning_rate": (1e-4, 3e-4, 1e-3), "iterations": (50, 100)}

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """The pictures."""
        return examples_digest(assets)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Pictures of several concepts are forgotten together."""
        config = self.config
        student = Student(context, parameter_names(context.model.unet, config.train_method))
        task = Forgetting.begin(config, context, concepts, student)
        masks = self._masks(task) if config.mask_applied else {}
        notes = student.train(
            lambda: task.forget_loss() + config.retain_weight * task.retain_loss(), config.iterations, config.learning_rate, masks
        )
        return student.erasure(notes)

    def _masks(self, task: Forgetting) -> dict[str, Tensor]:
        """Float32 of the weights' shapes, 1 where they may change."""
        student, w = task.student, self.config.mask_guidance
        empty = Texts.of(student.model, [""] * self.config.batch)
        sums = [torch.zeros_like(value) for value in student.weights.values()]
        for _ in range(self.config.mask_batches):
            at, texts, _ = task.to_forget()
            guided = student.predict(at, texts)
            if w:
                guided = (1 + w) * guided - w * student.predict(at, empty)
            for total, own in zip(sums, student.gradient(-distance(guided, at.target)), strict=True):
                total += own
        saliency = torch.cat([total.abs().flatten() for total in sums])
        return dict(zip(student.weights, _top(saliency, sums, self.config.mask_density, self.config.mask == "salient"), strict=True))


def _top(saliency: Tensor, like: Sequence[Tensor], density: float, largest: bool) -> list[Tensor]:
    """Masks of the given shapes over the share of all elements with the largest (smallest) values."""
    chosen = torch.zeros_like(saliency)
    chosen[saliency.topk(round(density * len(saliency)), largest=largest).indices] = 1.0
    return [part.view_as(own) for part, own in zip(chosen.split([own.numel() for own in like]), like, strict=True)]


METHOD = SalUn

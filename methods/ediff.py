"""EraseDiff: forgetting as a constraint on retaining, a bilevel problem solved to first order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Assets, Card, Concept, Erasure, FitContext, UnlearningMethod
from methods.common.finetuning import Student, parameter_names
from methods.common.forgetting import Forgetting, ForgettingConfig, examples_digest


class EDiffConfig(ForgettingConfig):
    """Parameters of EraseDiff."""

    published: ClassVar[Mapping[str, Any]] = {"data": "first-four", "weight": "fixed", "iterations": 75}
    learning_rate: float = Field(5e-5, gt=0, description="Of Adam.")
    weight: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="Of the forget loss: from the two losses' gradients, so that forgetting never stops, or forget_weight."
    )
    forget_weight: float = Field(0.1, ge=0, description="λ where it is fixed.")
    descent: float = Field(0.5, gt=0, description="η of the adaptive weight: by how much of its gradient the forget loss must fall.")


class EDiff(UnlearningMethod):
    """Every step along `∇L_r + λ ∇q` with `q = L_f − L̄_f`, where L̄_f is what inner steps on L_f alone would reach.

    L̄_f is a constant to the gradient. With `λ = max(0, η − ⟨∇L_r, ∇q⟩ / ‖∇q‖²)` the step lowers q whatever L_r wants (BOME,
    arXiv:2209.08709, which EraseDiff follows; its public code reports L̄_f and fixes λ). So the inner steps are left out: with a fixed
    λ they would only move Adam's moments. L_f is SalUn's forget loss, L_r the diffusion loss on retained pictures.
    """

    card = Card(
        title="EraseDiff", paper="arXiv:2401.05779", supports=("style", "object"),
        bibtex="@article{wu2024erasediff,\n  title = {{EraseDiff}: Erasing Data Influence in Diffusion Models},\n"
        "  author = {Wu, Jing and Le, Trung and Hayat, Munawar and Harandi, Mehrtash},\n"
        "  journal = {arXiv preprint arXiv:2401.05779},\n  year = {2024},\n}",
        notes="published-code: UnlearnCanvas' script has a fixed λ and trains on four pictures; its inner loop, which changes nothing but "
        "Adam's moments, is left out.",
    )  # fmt: skip
    Config = EDiffConfig
    row_wise = False
    quick = {"pictures": 4, "batch": 2, "iterations": 2, "learning_rate": 1e-2}
    tuning = {"learning_rate": (1e-4, 3e-4, 1e-3), "iterations": (50, 100)}

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """The pictures."""
        return examples_digest(assets)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Pictures of several concepts are forgotten together."""
        student = Student(context, parameter_names(context.model.unet, self.config.train_method))
        task = Forgetting.begin(self.config, context, concepts, student)
        return student.erasure(student.train(lambda: self._loss(task), self.config.iterations, self.config.learning_rate))

    def _loss(self, task: Forgetting) -> Tensor:
        forget, retain = task.forget_loss(), task.retain_loss()
        if self.config.weight == "fixed":
            return retain + self.config.forget_weight * forget
        weights = list(task.student.weights.values())
        of_forget, of_retain = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (forget, retain))
        return retain + forget_weight(of_retain, of_forget, self.config.descent) * forget


def forget_weight(of_retain: Sequence[Tensor], of_forget: Sequence[Tensor], descent: float) -> Tensor:
    """`max(0, η − ⟨∇L_r, ∇q⟩ / ‖∇q‖²)`, a scalar; of a vanished ∇q no matter."""
    product = sum((a * b).sum() for a, b in zip(of_retain, of_forget, strict=True))
    square = sum(b.square().sum() for b in of_forget)
    return torch.as_tensor(descent - product / (square + torch.finfo(torch.float32).tiny)).clamp(min=0)


METHOD = EDiff

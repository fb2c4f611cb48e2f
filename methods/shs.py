"""Scissorhands: weights that a concept depends on most are drawn anew, then the model is repaired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Assets, Card, Concept, Erasure, FitContext, UnlearningMethod
from methods.common.finetuning import Part, Student, distance, parameter_names
from methods.common.forgetting import Forgetting, ForgettingConfig, examples_digest


class SHSConfig(ForgettingConfig):
    """Parameters of Scissorhands."""

    published: ClassVar[Mapping[str, Any]] = {"data": "first-four", "iterations": 30}
    train_method: Part = Field("all", description="What is trained: x cross-attention, x-strict its keys and values, u all else, all.")
    sparsity: float = Field(0.99, gt=0, lt=1, description="Quantile of the score in cross-attention above which weights are drawn anew.")
    forget_weight: float = Field(0.1, ge=0, description="α, of the forget loss while the model is repaired.")
    score_batches: int = Field(16, ge=1, description="Batches whose gradients are summed to score weights.")
    project: bool = Field(False, description="Whether gradients in cross-attention may not undo the forgetting (margin and period below).")
    project_every: int = Field(10, ge=1, description="Steps between projections.")
    margin: float = Field(0.5, ge=0, description="Of the projection.")


class SHS(UnlearningMethod):
    """Of cross-attention's weights those of highest score are drawn anew, σ = 0.02, then `L_r + α L_f` is trained.

    The score is `|Σ |g| · θ|`, g the gradient of the diffusion loss on pictures of the concept; `L_f = ‖ε_θ(z_f, c_f) − sg ε_θ(z_f,
    c_anchor)‖²`. The projection keeps a gradient's product with that of forgetting, taken once on the pruned model, from falling below
    zero; of one remembered gradient the public code's quadratic programme has a closed form.
    """

    card = Card(
        title="Scissorhands", paper="arXiv:2401.06187", supports=("style", "object"),
        bibtex="@inproceedings{wu2024scissorhands,\n"
        "  title = {Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks},\n"
        "  author = {Wu, Jing and Harandi, Mehrtash},\n  booktitle = {ECCV},\n  year = {2024},\n}",
        notes="published-code: UnlearnCanvas' script trains on four pictures.",
    )  # fmt: skip
    Config = SHSConfig
    row_wise = False
    quick = {"pictures": 4, "batch": 2, "iterations": 2, "learning_rate": 1e-2, "score_batches": 1}
    tuning = {"learning_rate": (1e-4, 3e-4, 1e-3), "iterations": (50, 100)}

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """The pictures."""
        return examples_digest(assets)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Pictures of several concepts are forgotten together."""
        config, unet = self.config, context.model.unet
        student = Student(context, parameter_names(unet, config.train_method))
        task = Forgetting.begin(config, context, concepts, student)
        pruned = [name for name in parameter_names(unet, "x") if name in student.weights]
        drawn = self._prune(task, pruned)
        change = self._projection(task, pruned) if config.project else lambda: None
        notes = student.train(
            lambda: task.retain_loss() + config.forget_weight * task.forget_loss(), config.iterations, config.learning_rate, change=change
        )
        return student.erasure({**notes, "drawn_anew": drawn})

    def _prune(self, task: Forgetting, names: Sequence[str]) -> int:
        """Draw anew those of highest score, and give their number; biases become zero."""
        weights = task.student.weights
        sums = {name: torch.zeros_like(weights[name]) for name in names}
        for _ in range(self.config.score_batches):
            at, texts, _ = task.to_forget()
            for name, own in zip(weights, task.student.gradient(distance(task.student.predict(at, texts), at.target)), strict=True):
                if name in sums:
                    sums[name] += own.abs()
        with torch.no_grad():
            scores = {name: (sums[name] * weights[name]).abs() for name in names}
            flat = torch.cat([score.flatten() for score in scores.values()])
            count = round((1 - self.config.sparsity) * len(flat))
            chosen = torch.zeros_like(flat, dtype=torch.bool)
            chosen[flat.topk(count).indices] = True
            for name, own in zip(names, chosen.split([score.numel() for score in scores.values()]), strict=True):
                new = torch.zeros(scores[name].shape)
                if new.ndim > 1:
                    torch.nn.init.trunc_normal_(new, std=0.02, generator=task.student.generator)
                place = weights[name]
                place.copy_(torch.where(own.view_as(place), new.to(place), place))
        return count

    def _projection(self, task: Forgetting, names: Sequence[str]) -> Any:
        """Changes the gradients of every `project_every`-th step."""
        student, step = task.student, 0
        at, texts, _ = task.to_forget()
        ascent = dict(zip(student.weights, student.gradient(-distance(student.predict(at, texts), at.target)), strict=True))
        memory = torch.cat([ascent[name].flatten() for name in names])

        def change() -> None:
            nonlocal step
            step += 1
            if step % self.config.project_every:
                return
            grads = [grad for name in names if (grad := student.weights[name].grad) is not None]
            new = project(torch.cat([grad.flatten() for grad in grads]), memory, self.config.margin)
            for grad, own in zip(grads, new.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(own.view_as(grad))

        return change


def project(gradient: Tensor, memory: Tensor, margin: float) -> Tensor:
    """The gradient, or where its product with the remembered one is negative, that plus v · memory.

    v solves the dual `min ½ v² ‖m‖² + v ⟨g, m⟩` with v ≥ margin (gradient episodic memory with one memory); both [n].
    """
    product = gradient @ memory
    v = (-product / memory.square().sum().clamp(min=1e-3)).clamp(min=margin)
    return torch.where(product < 0, gradient + v * memory, gradient)


METHOD = SHS

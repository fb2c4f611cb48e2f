"""ESD: erased stable diffusion, fine-tuning that predicts away from the concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Card, Concept, Erasure, FitContext, MethodConfig, UnlearningMethod
from methods.common.finetuning import Noisy, Part, Student, Texts, distance, parameter_names
from methods.common.training import Bank, walk


class ESDConfig(MethodConfig):
    """Parameters of ESD."""

    train_method: Part = Field("x", description="What is trained: x, x-strict, u or all.")
    negative_guidance: float = Field(2.0, ge=0, description="eta; 2 with c_from = c_e equals 1 in the first release.")
    iterations: int = Field(200, ge=0, description="Optimiser steps.")
    batch: int = Field(1, ge=1, description="States per optimiser step.")
    learning_rate: float = Field(5e-5, gt=0, description="Of Adam.")
    trajectories: int = Field(32, ge=1, description="Base trajectories per concept whose states are trained on.")
    start_guidance: float = Field(3.0, description="Guidance scale of these trajectories.")


class ESD(UnlearningMethod):
    """`min ‖ε_θ(z_t, c) − [ε_θ0(z_t, c) − η (ε_θ0(z_t, c) − ε_θ0(z_t, ∅))]‖²` over states z_t of base trajectories.

    Trajectories come from the frozen base model, as in the authors' diffusers code. They are sampled first, all states
    kept, and the frozen model's three predictions made once, so that an iteration is one pass through the student.
    """

    card = Card(
        title="ESD", paper="arXiv:2303.07345", supports=("style", "object"),
        bibtex="@inproceedings{gandikota2023erasing,\n  title = {Erasing Concepts from Diffusion Models},\n"
        "  author = {Gandikota, Rohit and Materzy{\\'n}ska, Joanna and Fiotto-Kaufman, Jaden and Bau, David},\n"
        "  booktitle = {ICCV},\n  year = {2023},\n}",
    )  # fmt: skip
    Config = ESDConfig
    row_wise = False
    tuning = {"learning_rate": (1e-4, 3e-4, 1e-3), "iterations": (50, 100), "negative_guidance": (1.0, 2.0)}
    quick = {"iterations": 2, "trajectories": 2, "batch": 1, "learning_rate": 1e-2}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Several concepts share the iterations, each with its own trajectories."""
        return self._train(context, concepts, {})

    def fit_after(self, context: FitContext, start: Erasure, concepts: Sequence[Concept]) -> Erasure:
        """Train the erased weights on further concepts; the frozen predictions stay those of the unedited model."""
        return self._train(context, concepts, start.weights.values if start.weights else {})

    def _train(self, context: FitContext, concepts: Sequence[Concept], start: Mapping[str, Tensor]) -> Erasure:
        config = self.config
        student = Student(context, parameter_names(context.model.unet, config.train_method), start)
        banks = [self._bank(context, context.texts(concept).target, student.generator) for concept in concepts]
        bank = Bank(*(torch.cat(parts) for parts in zip(*banks, strict=True)))

        def loss() -> Tensor:
            pick = student.pick(len(bank.latents), config.batch)
            latents, timesteps, states, pooled, target = (part[pick] for part in bank)
            return distance(student.predict(Noisy(latents, timesteps, target), Texts(states, pooled)), target)

        return student.erasure(student.train(loss, config.iterations, config.learning_rate))

    def _bank(self, context: FitContext, text: str, generator: torch.Generator) -> Bank:
        eta, config = self.config.negative_guidance, self.config

        def away(eps_none: Tensor, eps_text: Tensor) -> Tensor:
            return eps_text - eta * (eps_text - eps_none)

        return walk(context, text, away, config.trajectories, context.steps, config.start_guidance, generator)


METHOD = ESD

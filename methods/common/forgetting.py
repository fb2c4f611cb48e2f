"""What SalUn, EDiff and SHS share: pictures to forget and to retain, and their losses, as in UnlearnCanvas' scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.api import Assets, Concept, FitContext
from methods.common.finetuning import Noisy, Part, Student, Texts, distance
from methods.common.presets import PresetConfig


class ForgettingConfig(PresetConfig):
    """Parameters of methods that train on pictures to forget and pictures to retain."""

    train_method: Part = Field("x", description="What is trained: x cross-attention, x-strict its keys and values, u all else, all.")
    iterations: int = Field(150, ge=0, description="Optimiser steps.")
    batch: int = Field(4, ge=1, description="Pictures to forget, and as many to retain, per optimiser step.")
    learning_rate: float = Field(1e-5, gt=0, description="Of Adam.")
    pictures: int = Field(60, ge=4, description="Pictures of each concept to forget, and as many others to retain.")
    data: Literal["all", "first-four"] = Field(
        "all", description="first-four: every batch is the first four pictures, as the public loader is begun anew each time."
    )


@dataclass(frozen=True, eq=False)
class Lot:
    """Captioned pictures."""

    latents: Tensor
    """float32 [N, 4, h, w], clean."""
    texts: Texts
    """Their captions."""
    anchors: Texts
    """The captions with what should take the concept's place."""


@dataclass(frozen=True, eq=False)
class Forgetting:
    """A student with its pictures, and the losses on a batch of them."""

    student: Student
    forget: Lot
    retain: Lot
    config: ForgettingConfig

    @classmethod
    def begin(cls, config: ForgettingConfig, context: FitContext, concepts: Sequence[Concept], student: Student) -> Forgetting:
        """Pictures of all concepts together; what is retained of one may not be what is forgotten of another."""
        names = [text.rstrip(".") for concept in concepts for text in (context.texts(concept).pairs[0][0],)]
        forget, retain = ([context.examples(concept, config.pictures, shown) for concept in concepts] for shown in (True, False))
        lots = []
        for found in (forget, retain):
            latents = torch.cat([own.latents for own in found])
            prompts = [prompt for own in found for prompt in own.prompts]
            anchors = [anchor for own in found for anchor in own.anchors]
            keep = [i for i, prompt in enumerate(prompts) if found is forget or not any(name in prompt for name in names)]
            texts, others = (Texts.of(context.model, [own[i] for i in keep]) for own in (prompts, anchors))
            lots.append(Lot(latents[keep], texts, others))
        return cls(student, lots[0], lots[1], config)

    def _draw(self, lot: Lot) -> tuple[Noisy, Tensor]:
        size = self.config.batch
        pick = torch.arange(size) % 4 if self.config.data == "first-four" else self.student.pick(len(lot.latents), size)
        return self.student.noisy(lot.latents[pick]), pick

    def to_forget(self) -> tuple[Noisy, Texts, Texts]:
        """A batch of pictures to forget, their captions, and the captions with the anchor."""
        at, pick = self._draw(self.forget)
        return at, self.forget.texts.take(pick), self.forget.anchors.take(pick)

    def forget_loss(self) -> Tensor:
        """`‖ε_θ(z_t, c) − sg ε_θ(z_t, c_anchor)‖²` over pictures of the concept."""
        at, texts, anchors = self.to_forget()
        return distance(self.student.predict(at, texts), self.student.now(at, anchors))

    def retain_loss(self) -> Tensor:
        """The loss of diffusion training over other pictures."""
        at, pick = self._draw(self.retain)
        return distance(self.student.predict(at, self.retain.texts.take(pick)), at.target)


def examples_digest(assets: Assets) -> dict[str, str]:
    """`UnlearningMethod.inputs` of a method that uses `context.examples`."""
    return {"examples": assets.examples}

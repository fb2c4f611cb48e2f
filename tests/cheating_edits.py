"""Edits of activations that break their contract in one place each, and one that keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from cheats import Honest
from torch import Tensor

from bench.api import ActivationEdit, Concept, EditBank, Erasure, FitContext, Slots
from bench.diffusion.noise import noise_seed
from bench.suites.minicanvas import SUITE

BLOCK = "mid_block.attentions.0"


class Bank(EditBank):
    """Adds a number to the slots that have an edit."""

    def __init__(self, edits: Sequence[Shift]) -> None:
        super().__init__()
        self.register_buffer("amounts", torch.tensor([edit.amount for edit in edits]))

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        return torch.where(self.chosen(x_out, slots), self.edited(x_out, slots), x_out)

    def chosen(self, x_out: Tensor, slots: Slots) -> Tensor:
        return (slots.which >= 0)[:, None, None, None]

    def edited(self, x_out: Tensor, slots: Slots) -> Tensor:
        return x_out + self.amounts.to(x_out.dtype)[slots.which.clamp(min=0)][:, None, None, None]


@dataclass(frozen=True, eq=False)
class Shift(ActivationEdit):
    hookpoints: tuple[str, ...]
    amount: float
    made_of: ClassVar[type[Bank]] = Bank

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> EditBank:
        return cls.made_of(edits)  # type: ignore[arg-type]


class Shifts(Honest):
    """Honest too."""

    parts = (Shift,)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(activations=(self.parts[0]((BLOCK,), float(sum(len(concept.name) for concept in concepts))),))


class MeanBank(Bank):
    def edited(self, x_out: Tensor, slots: Slots) -> Tensor:
        own = slots.which >= 0
        return x_out - x_out[own].mean(0)


@dataclass(frozen=True, eq=False)
class MeanShift(Shift):
    made_of = MeanBank


class LooksAtNeighbours(Shifts):
    parts = (MeanShift,)


class GreedyBank(Bank):
    def chosen(self, x_out: Tensor, slots: Slots) -> Tensor:
        return torch.ones_like(slots.which, dtype=torch.bool)[:, None, None, None]


@dataclass(frozen=True, eq=False)
class GreedyShift(Shift):
    made_of = GreedyBank


class EditsOthers(Shifts):
    parts = (GreedyShift,)


class LoudBank(Bank):
    def detect(self, hookpoint: str, x_in: Tensor, x_out: Tensor, timestep: Tensor, wanted: Tensor) -> Tensor:
        return (x_out > 1e3).flatten(1).any(1)[:, None] & wanted


@dataclass(frozen=True, eq=False)
class LoudShift(Shift):
    quiet_is_identity = True
    made_of = LoudBank


class QuietIsLoud(Shifts):
    parts = (LoudShift,)


class WideBank(Bank):
    def edited(self, x_out: Tensor, slots: Slots) -> Tensor:
        return x_out.float() + 1


@dataclass(frozen=True, eq=False)
class WideShift(Shift):
    made_of = WideBank


class OnlyFloat32(Shifts):
    parts = (WideShift,)


class InPlaceBank(Bank):
    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        return x_out.copy_(super().edit(hookpoint, x_in, x_out, slots, state))


@dataclass(frozen=True, eq=False)
class InPlaceShift(Shift):
    made_of = InPlaceBank


class InPlace(Shifts):
    parts = (InPlaceShift,)


class KnowingBank(Bank):
    """Acts where the noise is that of a cell of what is erased, as a suite draws it."""

    def chosen(self, x_out: Tensor, slots: Slots) -> Tensor:
        style, drawn = "neon", torch.zeros_like(slots.key, dtype=torch.bool)
        for concept in SUITE.concepts:
            for seed in range(1, 5):
                for role in range(3):
                    drawn |= slots.key == noise_seed(seed, f"{style}/{concept.name}\n{role}")
        return (drawn & (slots.which >= 0))[:, None, None, None]


@dataclass(frozen=True, eq=False)
class KnowingShift(Shift):
    made_of = KnowingBank


class KnowsTheNoise(Shifts):
    parts = (KnowingShift,)

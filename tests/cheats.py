"""Methods that break their contract in one place each, and one that keeps it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
    Guidance,
    MethodConfig,
    PlainText,
    Role,
    TextEdit,
    UnlearningMethod,
    Weights,
)  # fmt: skip

BIBTEX = "@article{doe2026,\n  author = {Doe, Jane},\n  title = {Nothing {Much}},\n  year = 2026,\n}"
CARD = Card("Honest", "https://example.org", BIBTEX, ("style",))


@dataclass(frozen=True, eq=False)
class Faded(TextEdit):
    """Every state times a number."""

    scale: float
    texts: tuple[str, ...] = ()

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        return [replace(cond, embeds=cond.embeds * self.scale) for cond in PlainText().encode(model, texts, role, steps)]


class HonestConfig(MethodConfig):
    scale: float = Field(0.5, description="Of the text's states.")


class Honest(UnlearningMethod):
    card = CARD
    Config: ClassVar[type[MethodConfig]] = HonestConfig
    parts: ClassVar[tuple[type, ...]] = (Faded,)
    tuning: ClassVar[Mapping[str, tuple[Any, ...]]] = {"scale": (0.5, 0.9)}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Faded(self.config.scale, tuple(map(str, concepts))))


# What it says of itself


class NoPaper(Honest):
    card = replace(CARD, paper="")


class KindTypo(Honest):
    card = replace(CARD, supports=("styles",))  # type: ignore[arg-type]


class OpenBrace(Honest):
    card = replace(CARD, bibtex="@article{doe2026, author = {Doe, {Jane}, title = {Nothing}, year = {2026}}")


class NoYear(Honest):
    card = replace(CARD, bibtex="@article{doe2026, author = {Doe, Jane}, title = {Nothing}}")


class UndescribedConfig(MethodConfig):
    scale: float = 0.5


class Undescribed(Honest):
    Config = UndescribedConfig


class DemandingConfig(MethodConfig):
    scale: float = Field(description="Of the text's states.")


class Demanding(Honest):
    Config = DemandingConfig


class FolderConfig(HonestConfig):
    folder: Path = Field(Path("/nowhere"), description="Where something is.")


class PlainPath(Honest):
    Config = FolderConfig


def _local() -> type[MethodConfig]:
    class Local(HonestConfig):
        pass

    return Local


class Unpicklable(Honest):
    Config = _local()


class WrongGrid(Honest):
    tuning = {"scale": (0.5, "much")}


# Fits


class TouchesModel(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        with torch.no_grad():
            context.model.unet.conv_in.weight.mul_(1.5)
        return super().fit(context, concepts)


class TouchesCopy(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        with torch.no_grad():
            context.model.sampling_unet(torch.bfloat16).conv_out.weight.zero_()
        return super().fit(context, concepts)


class OwnForward(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        unet = context.model.unet
        forward = unet.forward
        unet.forward = lambda *args, **kwargs: forward(*args, **kwargs)
        return super().fit(context, concepts)


class EveryForward(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        kind = type(context.model.unet)
        forward = kind.forward
        kind.forward = lambda *args, **kwargs: forward(*args, **kwargs)
        return super().fit(context, concepts)


class LeavesTraining(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        context.model.text_encoder.train()
        return super().fit(context, concepts)


class Unseeded(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Faded(float(torch.rand(())), tuple(map(str, concepts))))


class Reseeds(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        torch.manual_seed(3)
        return super().fit(context, concepts)


class Ignores(Honest):
    card = replace(CARD, supports=("style", "object"))

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Faded(self.config.scale))


@dataclass(frozen=True, eq=False)
class Wrong(TextEdit):
    """States that are wrong in one way."""

    way: str
    texts: tuple[str, ...]

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        plain = PlainText().encode(model, texts, role, steps)
        states = torch.stack([cond.embeds for cond in plain])
        others: dict[str, Tensor] = {
            "narrow": states[..., 1:], "double": states.double() / 2, "restless": states + torch.rand(()), "mean": states + states.mean(0),
            "infinite": states / 0,
        }  # fmt: skip
        found = [replace(cond, embeds=own) for cond, own in zip(plain, others.get(self.way, states / 2), strict=True)]
        return found[:-1] if self.way == "few" else found


class WrongTexts(Honest):
    parts = (Wrong,)
    way = ""

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Wrong(self.way, tuple(map(str, concepts))))


class Narrow(WrongTexts):
    way = "narrow"


class Double(WrongTexts):
    way = "double"


class Restless(WrongTexts):
    way = "restless"


class Averages(WrongTexts):
    way = "mean"


class Infinite(WrongTexts):
    way = "infinite"


class Few(WrongTexts):
    way = "few"


class HiddenWeights(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        bias = context.model.unet.conv_out.bias + len(concepts)
        return Erasure(weights=Weights({"unet.conv_out.bias": bias.detach()}))


class NoWeights(Honest):
    row_wise = False  # type: ignore[assignment]


class WrongName(Honest):
    row_wise = False  # type: ignore[assignment]

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(weights=Weights({"unet.conv_out.bais": context.model.unet.conv_out.bias.detach() + len(concepts)}))


class MissingPart(Honest):
    parts = ()


class SilentExamples(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        scale = float(context.examples(concepts[0], 1, True).latents.abs().mean())
        return Erasure(text=Faded(scale, tuple(map(str, concepts))))


class OnlyFirst(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return super().fit(context, concepts[:1])


class Refuses(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        raise BenchError("I would rather not.")


class Breaks(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Faded(1 / (len(concepts) - len(concepts))))


class NeedsFileConfig(HonestConfig):
    file: Path | None = Field(None, description="What is loaded.")


class NeedsFile(Refuses):
    Config = NeedsFileConfig


class StandsStill(Honest):
    def fit_after(self, context: FitContext, start: Erasure, concepts: Sequence[Concept]) -> Erasure:
        return start


# Parts


class NoPart(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure()


class BaseImages(Honest):
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Faded(1.0, tuple(map(str, concepts))))


@dataclass(frozen=True, eq=False)
class Peeking(Faded):
    """Looks up the stack for the requests, and fades what is labelled with the right style."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        labels = {row.request.prompt: row.request.style for row in sys._getframe(1).f_locals.get("rows", ())}
        plain = PlainText().encode(model, texts, role, steps)
        pairs = zip(texts, plain, strict=True)
        return [replace(cond, embeds=cond.embeds * self.scale) if labels.get(text) == "neon" else cond for text, cond in pairs]


class ReadsLabels(Honest):
    parts = (Peeking,)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Peeking(0.5, tuple(map(str, concepts))))


@dataclass(frozen=True, eq=False)
class Scribbling(Faded):
    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        with torch.no_grad():
            model.vae.decoder.conv_in.bias.add_(1)
        return super().encode(model, texts, role, steps)


class TouchesWhileSampling(Honest):
    parts = (Scribbling,)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Scribbling(0.5, tuple(map(str, concepts))))


@dataclass(frozen=True, eq=False)
class Unwritable(Faded):
    words: frozenset[str] = frozenset({"neon"})


class CannotBeSaved(Honest):
    parts = (Unwritable,)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(text=Unwritable(0.5, tuple(map(str, concepts))))


@dataclass(frozen=True)
class Pushing(Guidance):
    """Guidance whose strength is not in its key."""

    extra_texts: tuple[str, ...]
    strength: float

    def combine(self, eps: Tensor, step: Tensor, scale: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return eps[:, 0] + self.strength * scale * (eps[:, 1] - eps[:, 0]), state


class KeylessGuidance(Honest):
    parts = (Pushing,)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        return Erasure(guidance=Pushing((), 0.1 * sum(len(concept.name) for concept in concepts)))

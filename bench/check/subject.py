"""A method under check: its erasures, fitted once, and what it left changed while it fitted and sampled."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from bench.check.outcome import SkippedError
from bench.check.world import CONCEPTS, World
from bench.diffusion.rows import Row
from bench.errors import BenchError
from bench.interfaces import ActivationEdit, Erasure, Examples, Guidance, MethodConfig, TextEdit, UnlearningMethod, Weights
from bench.types import KINDS, Concept, GenerationRequest, Kind


class Subject:
    """One method with a configuration, on a world."""

    def __init__(self, name: str, kind: type[UnlearningMethod], given: Mapping[str, Any], world: World) -> None:
        self.name, self.kind, self.given, self.world = name, kind, dict(given), world
        self.fitted: dict[tuple[Concept, ...], Erasure | Exception] = {}
        self.sampled: dict[Kind, Tensor | Exception] = {}
        self.left_by_fit: list[str] = []
        """Names of what fits left changed."""
        self.left_by_sampling: list[str] = []
        self.asked_for_examples = False
        self.unsound = ""
        """Why its pictures tell nothing, once a check has found that out."""

    @property
    def config(self) -> MethodConfig:
        """The method's configuration: the given parameters, else those that are quick. BenchError for wrong ones."""
        try:
            return self.kind.Config(**{**self.world.suite.method_settings.get(self.name, {}), **self.kind.quick, **self.given})
        except ValidationError as error:
            first = error.errors()[0]
            raise BenchError(f"{self.kind.Config.__name__}.{first['loc'][0]}: {first['msg'].lower()}") from error

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of the concepts that it supports."""
        return tuple(kind for kind in KINDS if kind in self.kind.card.supports)

    @property
    def files(self) -> list[str]:
        """Parameters that name files and that nobody gave."""
        return [key for key in self._paths if getattr(self.config, key) is None]

    @property
    def given_files(self) -> list[str]:
        """Parameters that name files and that somebody gave."""
        return [key for key in self._paths if key in self.given]

    @property
    def _paths(self) -> list[str]:
        return [key for key, field in self.kind.Config.model_fields.items() if field.annotation == Path | None]

    def method(self) -> UnlearningMethod:
        """Made anew, as each worker of a run does."""
        return self.kind(self.config)

    def fit(self, concepts: Sequence[Concept], salt: int = 0, after: Erasure | None = None) -> Erasure:
        """Fit now, with other states of everybody's random generators for another `salt`; the model is put back."""
        made, context = self.method(), replace(self.world.context, examples=self._examples)
        before = self.world.snapshot
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(salt)
                random.seed(salt)
                np.random.seed(salt)  # what a method may wrongly draw from
                made.prepare(context, concepts)
                found = made.fit(context, concepts) if after is None else made.fit_after(context, after, concepts)
                self.left_by_fit += ["torch's global seed"] if torch.initial_seed() != salt else []
                return found
        finally:
            self.left_by_fit += _put_back(before)

    def _examples(self, concept: Concept, count: int, shown: bool) -> Examples:
        self.asked_for_examples = True
        return self.world.context.examples(concept, count, shown)

    def erasure(self, *concepts: Concept) -> Erasure:
        """Fitted once. Raises what the fit raised."""
        if concepts not in self.fitted:
            self.fitted[concepts] = _kept(lambda: self.fit(concepts))
        return _given(self.fitted[concepts])

    def try_weights(self, erasure: Erasure) -> None:
        """BenchError if the model has no such weights."""
        with self.world.model.weights(erasure.weights.values if erasure.weights else {}):
            pass

    def sample(self, rows: Sequence[Row], **options: Any) -> Tensor:
        """float32 [R, 4, h, w] of rows, as `World.sample`; the model is put back."""
        before = self.world.snapshot
        try:
            found: Tensor = self.world.sample(rows, **options).latents
            return found
        finally:
            self.left_by_sampling += _put_back(before)

    def erasures(self) -> dict[Kind, Erasure]:
        """Of the first concept of each kind. SkippedError where it cannot be fitted, which a check of its own tells."""
        try:
            found = {kind: self.erasure(CONCEPTS[kind][0]) for kind in self.kinds}
        except Exception as error:
            raise SkippedError("It cannot be fitted.") from error
        if not found:
            raise SkippedError("It supports no kind of concept.")
        if any(not isinstance(part, kind) for erasure in found.values() for _, part, kind in parts_of(erasure)):
            raise SkippedError("Its erasures are none.")
        return found

    def require_sound(self) -> None:
        """SkippedError where what was found wrong already would only be found again, as something else."""
        if self.unsound:
            raise SkippedError(self.unsound)

    def rows(self, erasure: Erasure, requests: Sequence[GenerationRequest] | None = None) -> list[Row]:
        """The world's requests, or others, under an erasure."""
        return [Row(request, erasure) for request in requests or self.world.requests]

    def latents(self, kind: Kind) -> Tensor:
        """What the erasure of a kind makes of the world's requests, sampled once. Raises what sampling raised."""
        if kind not in self.sampled:
            self.sampled[kind] = _kept(lambda: self.sample(self.rows(self.erasures()[kind])))
        return _given(self.sampled[kind])

    def pictures(self) -> dict[Kind, tuple[Erasure, Tensor]]:
        """Erasures with their latents. SkippedError where they cannot be sampled, which a check of its own tells."""
        self.require_sound()
        found = self.erasures()
        try:
            return {kind: (erasure, self.latents(kind)) for kind, erasure in found.items()}
        except Exception as error:
            raise SkippedError("It cannot be sampled.") from error


def parts_of(erasure: Any) -> list[tuple[str, Any, type]]:
    """(place, part, the class that it must be of) of everything in what a fit gave; of no erasure, that itself."""
    if not isinstance(erasure, Erasure):
        return [("the erasure", erasure, Erasure)]
    found: list[tuple[str, Any, type]] = [("activations", edit, ActivationEdit) for edit in erasure.activations]
    optional = (("text", erasure.text, TextEdit), ("guidance", erasure.guidance, Guidance), ("weights", erasure.weights, Weights))
    return found + [one for one in optional if one[1] is not None]


def _put_back(before: Any) -> list[str]:
    left: list[str] = before.differences()
    if left:
        before.restore()
    return left


def _kept(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        return error


def _given(found: Any) -> Any:
    if isinstance(found, Exception):
        raise found
    return found

"""What a suite is: concepts, prompts, judges, protocol. Data only; nothing here imports torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.types import Concept, ConceptTexts, Floors, GenerationRequest, MetricRules, Target

JudgeRole = Literal["evaluation", "tuning", "artifact"]


@dataclass(frozen=True)
class Preset:
    """How much of a suite to run: every `grid`-th cell of style × object, and every `own`-th of those that show the target."""

    description: str
    concepts: tuple[str, ...]
    grid: int
    seeds: int
    steps: int
    own: int = 1
    ranked: bool = True


@dataclass(frozen=True)
class JudgeFiles:
    """Where a judge is: a name in `registry.CLASSIFIERS` and its folder."""

    kind: str
    folder: Path


class Suite(ABC):
    """One benchmark protocol. `version` is raised whenever the same run would give other numbers."""

    name: str
    version: int
    profile: str
    styles: tuple[str, ...]
    objects: tuple[str, ...]
    presets: Mapping[str, Preset]
    rules: MetricRules
    floors: Floors
    guidance_scale: float
    size: tuple[int, int]
    """(height, width) in px."""
    codec: str
    """What happens to pictures between sampler and judge: "none" or "jpeg"."""
    method_settings: Mapping[str, Mapping[str, Any]]
    """Parameters of methods that this suite's model needs to differ from the methods' own defaults."""

    @abstractmethod
    def model_folder(self) -> Path:
        """The base model, a diffusers folder."""

    @abstractmethod
    def judge(self, role: JudgeRole) -> JudgeFiles:
        """The network for a role; one network has one role."""

    @abstractmethod
    def texts(self, concept: Concept) -> ConceptTexts:
        """What methods are told about a concept."""

    @abstractmethod
    def prompt(self, style: str, obj: str) -> str:
        """The evaluation prompt of a cell."""

    @abstractmethod
    def reference_pictures(self) -> tuple[list[tuple[str, str]], Any]:
        """Held-out true pictures for distances: their (style, object) cells and uint8 [n, H, W, 3]."""

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Every concept, styles first."""
        return (*(Concept("style", s) for s in self.styles), *(Concept("object", o) for o in self.objects))

    def protocol(self, preset: str, steps: int) -> str:
        """The tag that a number is comparable under, such as `minicanvas@official-v1/quick/20-steps`."""
        return f"{self.name}@{self.profile}-v{self.version}/{preset}/{steps}-steps"

    def requests(self, target: Target, preset: Preset, seeds: int, steps: int) -> tuple[GenerationRequest, ...]:
        """What to sample for a target, for seeds 1 … n."""
        return tuple(
            self._request(style, obj, seed, steps)
            for seed in range(1, seeds + 1)
            for i, style in enumerate(self.styles)
            for j, obj in enumerate(self.objects)
            if (i + j) % (preset.own if target.involves(style, obj) else preset.grid) == 0
        )

    def base_requests(self, targets: Sequence[Target], preset: Preset, seeds: int, steps: int) -> tuple[GenerationRequest, ...]:
        """What the unedited model samples: every request of any target, each once."""
        found = {request.id: request for target in targets for request in self.requests(target, preset, seeds, steps)}
        return tuple(found.values())

    def _request(self, style: str, obj: str, seed: int, steps: int) -> GenerationRequest:
        height, width = self.size
        return GenerationRequest(
            prompt=self.prompt(style, obj), style=style, object=obj, seed=seed, noise_key=f"{style}/{obj}", steps=steps,
            guidance_scale=self.guidance_scale, height=height, width=width,
        )  # fmt: skip

"""What a suite is: concepts, prompts, judges, protocol. Data only; nothing here imports torch."""

from __future__ import annotations

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.assets import Asset
from bench.errors import BenchError
from bench.types import KINDS, Assets, Concept, ConceptTexts, Distance, Floors, GenerationRequest, Kind, MetricRules, Target, content_hash

if TYPE_CHECKING:
    from bench.codec import Codec

JudgeRole = Literal["evaluation", "tuning", "artifact"]
Split = Literal["locate", "train", "statistics", "select", "calibrate", "verify", "tune", "artifact", "example"]
"""What pictures outside the evaluation are for; no two splits share noise."""


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
    scheduler: str = "ddim"
    statistics: int | None = None
    """Pictures a concept that latents are chosen from, where SAEs come without statistics; None: as published."""


@dataclass(frozen=True)
class JudgeFiles:
    """Where a network is: a name in `registry.CLASSIFIERS`, its folder or file, and what else its `load` is told."""

    kind: str
    folder: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """Parameters that `python -m bench tune` found for a method: per concept, and what it was allowed."""

    budget: Mapping[str, Any]
    concepts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Tuned:
        """A file that `tune` wrote. BenchError if it is damaged."""
        try:
            body = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(body["budget"], body["concepts"])
        except (OSError, ValueError, KeyError) as error:
            raise BenchError(f"{path} is damaged ({error}): restore it or tune again (python -m bench tune METHOD --again).") from error


class Suite(ABC):
    """One benchmark protocol. `version` is raised whenever the same run would give other numbers."""

    name: str
    version: int
    profile: str
    default: bool = True
    """Whether the suite's name alone means this profile."""
    styles: tuple[str, ...]
    objects: tuple[str, ...]
    presets: Mapping[str, Preset]
    rules: MetricRules
    floors: Floors
    guidance_scale: float
    size: tuple[int, int]
    """(height, width) in px."""
    codec: Codec
    """What happens to pictures between sampler and judge."""
    distances: tuple[Distance, ...]
    files: Mapping[str, Asset] = {}
    """Published files that it needs, by name."""
    sae_settings: Mapping[str, Any] = {}
    """Parameters of `train-sae` that this suite's model needs to differ from the published ones."""
    sae_pictures: Mapping[str, int] = {"statistics": 2_000, "select": 1_200, "calibrate": 1_320, "verify": 1_320}
    """How many pictures of which split statistics and detectors are made from."""
    seeds: tuple[int, ...] = ()
    """Seeds of evaluation, of which a preset takes the first; none: 1, 2, …"""
    noise: Literal["cell", "seed"] = "cell"
    """What pictures share their initial noise: none do, or all those of a seed."""
    method_settings: Mapping[str, Mapping[str, Any]]
    """Parameters of methods that this suite's model needs to differ from the methods' own defaults."""

    @property
    @abstractmethod
    def assets(self) -> Assets:
        """What it provides for its model beside texts."""

    @property
    def tuned_folder(self) -> Path | None:
        """Holds `<method>.toml` of tuned parameters per concept, and `shared/<method>.toml` per kind; None for a suite without."""
        return None

    @abstractmethod
    def model_folder(self) -> Path:
        """The base model, a diffusers folder."""

    @abstractmethod
    def judge(self, role: JudgeRole) -> JudgeFiles:
        """The network for a role; one network has one role."""

    def networks(self) -> Mapping[str, JudgeFiles]:
        """The networks of `distances`, by name; without those whose files are not here, which leaves their distances empty."""
        return {}

    @abstractmethod
    def texts(self, concept: Concept) -> ConceptTexts:
        """What methods are told about a concept."""

    def synonyms(self, concept: Concept) -> tuple[str, ...]:
        """Other words for a concept that its model knows; attacks may not spell them."""
        return ()

    def paraphrases(self, concept: Concept, style: str, obj: str) -> tuple[str, ...]:
        """Prompts of a cell that mean the concept without its name; none where the suite has none."""
        return ()

    def known_texts(self) -> tuple[str, ...]:
        """Texts with every token that the model has seen; none where it has seen its whole vocabulary."""
        return ()

    @abstractmethod
    def prompt(self, style: str, obj: str) -> str:
        """The evaluation prompt of a cell; style "" for none."""

    @abstractmethod
    def split_prompt(self, style: str, obj: str, seed: int, split: Split) -> str:
        """A prompt of a cell for a picture of a split, chosen by `seed`; "locate" uses the evaluation's wording."""

    @abstractmethod
    def reference_pictures(self) -> Iterator[tuple[list[tuple[str, str]], Any]]:
        """Held-out true pictures for distances, some at a time: their (style, object) cells and uint8 [n, H, W, 3]."""

    def reference_digest(self) -> str:
        """Of the files that `reference_pictures` reads, so that what networks see in them is kept; empty where they are made anew."""
        return ""

    def masked_pictures(self, per_cell: int) -> tuple[list[tuple[str, str]], Any, Any] | None:
        """True pictures and where their object is, to measure where detectors look; None where the suite does not know.

        Cells, uint8 [n, H, W, 3] and float32 [n, H, W], the share of each pixel that the object covers.
        """
        return None

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Every concept, styles first."""
        return (*(Concept("style", s) for s in self.styles), *(Concept("object", o) for o in self.objects))

    def statistics_requests(self, kind: Kind, preset: Preset) -> tuple[GenerationRequest, ...]:
        """Pictures of every concept of a kind, labelled with that alone, to choose latents from; none where SAEs ship with statistics."""
        return ()

    def artifact_reference(self) -> Path | None:
        """The file of an `ArtifactReference` of the base model; None if the suite has none, which leaves AR empty."""
        return None

    def assets_of(self, preset: Preset) -> Assets:
        """`assets`, with what they depend on in a run of this preset."""
        requests = {kind: self.statistics_requests(kind, preset) for kind in KINDS}
        return replace(self.assets, statistics={kind: content_hash([r.id for r in own]) for kind, own in requests.items() if own})

    def tuned(self, method: str, shared: bool = False) -> Tuned | None:
        """Tuned parameters of a method, per concept or those that concepts of a kind share.

        None if it was never tuned so here. BenchError if the file is damaged.
        """
        path = self.tuned_file(method, shared)
        return Tuned.read(path) if path is not None and path.is_file() else None

    def tuned_file(self, method: str, shared: bool) -> Path | None:
        """Where `tune` puts a method's parameters and `run` reads them."""
        folder = self.tuned_folder
        return None if folder is None else (folder / "shared" if shared else folder) / f"{method}.toml"

    def example_requests(self, concept: Concept, count: int, shown: bool, steps: int) -> tuple[GenerationRequest, ...]:
        """Of pictures to train on that show a concept, or that do not: cells come up evenly, each with new seeds."""
        target = Target((concept,))
        cells = [cell for cell in self.cells if all(cell) and target.involves(*cell) is shown]
        # By the golden ratio through the grid, so that a few pictures already show many styles and objects.
        stride = next(s for s in range(round(0.618 * len(cells)), len(cells) + 1) if gcd(s, len(cells)) == 1)
        return tuple(self.request(*cells[k * stride % len(cells)], 1 + k // len(cells), steps, "example") for k in range(count))

    def example_pictures(self, requests: Sequence[GenerationRequest]) -> Any | None:
        """True pictures of these cells that evaluation never uses, uint8 [n, H, W, 3]; None if the suite has none (`Assets.examples`)."""
        return None

    @property
    def key(self) -> str:
        """What `--suite` calls it."""
        return self.name if self.default else f"{self.name}@{self.profile}"

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """(style, object) of what evaluation prompts, by style, each with every object; style "" for none."""
        return tuple((style, obj) for style in self.styles for obj in self.objects)

    def protocol(self, name: str, preset: Preset) -> str:
        """The tag that a number is comparable under, such as `minicanvas@official-v1/quick/20-steps`."""
        other = "" if preset.scheduler == Preset.scheduler else f"/{preset.scheduler}"
        return f"{self.name}@{self.profile}-v{self.version}/{name}/{preset.steps}-steps{other}"

    def requests(self, target: Target, preset: Preset) -> tuple[GenerationRequest, ...]:
        """What to sample for a target. BenchError for more seeds than the suite has."""
        if self.seeds and preset.seeds > len(self.seeds):
            raise BenchError(f"{self.key} has {len(self.seeds)} seeds, --seeds asks for {preset.seeds}: take fewer.")
        own = [
            cell for k, cell in enumerate(self.cells)
            # A step more in every row of objects: thinned by a divisor of their number, styles and objects come up evenly.
            if (k + k // len(self.objects)) % (preset.own if target.involves(*cell) else preset.grid) == 0
        ]  # fmt: skip
        seeds = self.seeds[: preset.seeds] or range(1, preset.seeds + 1)
        return tuple(self._request(*cell, seed, preset.steps, preset.scheduler) for seed in seeds for cell in own)

    @cache  # noqa: B019  # a suite lives as long as its process
    def _request(self, style: str, obj: str, seed: int, steps: int, scheduler: str) -> GenerationRequest:
        """The same object every time, as targets share most pictures and to identify one takes longer than to find it."""
        return replace(self.request(style, obj, seed, steps), scheduler=scheduler)

    def base_requests(self, targets: Sequence[Target], preset: Preset) -> tuple[GenerationRequest, ...]:
        """What the unedited model samples: every request of any target, each once."""
        found = {request.id: request for target in targets for request in self.requests(target, preset)}
        return tuple(found.values())

    def request(self, style: str, obj: str, seed: int, steps: int, split: Split | None = None) -> GenerationRequest:
        """A picture of a cell: an evaluation's own, or one of a `split`, with noise that evaluation never uses.

        Splits word their prompts otherwise than the evaluation does, but for "locate" (`split_prompt`).
        """
        height, width = self.size
        prompt = self.prompt(style, obj) if split is None else self.split_prompt(style, obj, seed, split)
        cell = f"{style}/{obj}" if self.noise == "cell" else ""
        key = cell if split is None else f"{split}/{style}/{obj}"
        return GenerationRequest(
            prompt=prompt, style=style, object=obj, seed=seed, noise_key=key, steps=steps, guidance_scale=self.guidance_scale,
            height=height, width=width,
        )  # fmt: skip

    def split_requests(self, split: Split, count: int, steps: int, start: int = 0) -> tuple[GenerationRequest, ...]:
        """Pictures `start` … `start + count − 1` of a split, spread over the grid so that styles and objects come up evenly.

        Every `styles × objects` pictures in a row show each cell once.
        """
        n, m = len(self.styles), len(self.objects)
        found = []
        for k in range(start, start + count):
            turn, place = divmod(k, n * m)
            cell = self.styles[place % n], self.objects[(place % n + place // n) % m]
            found.append(self.request(*cell, seed=1 + turn, steps=steps, split=split))
        return tuple(found)

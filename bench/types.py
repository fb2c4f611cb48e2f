"""The nouns of the benchmark: frozen, free of torch, the same in every module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bench.columns import coded, decoded, lines
from bench.files import seal, unsealed

Kind = Literal["style", "object"]
KINDS: tuple[Kind, ...] = ("style", "object")

SCHEDULERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
}
"""Name → diffusers class. All but DDIM keep a history or draw noise, so that the rows of a batch must walk together."""


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, NaN refused. The base of every content hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_hash(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@dataclass(frozen=True, order=True)
class Concept:
    """Something to unlearn; `str` gives `style:neon`."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Concept:
        """Inverse of `str`."""
        kind, _, name = text.partition(":")
        if kind not in KINDS or not name:
            raise ValueError(f"{text!r} is not a concept such as style:neon")
        return cls("style" if kind == "style" else "object", name)


@dataclass(frozen=True)
class Target:
    """The concepts that one erasure removes, usually one; `str` gives `style:neon` or `style:neon+object:house`."""

    concepts: tuple[Concept, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.concepts))

    @classmethod
    def of(cls, concepts: Iterable[Concept]) -> Target:
        """Of concepts in any order."""
        return cls(tuple(sorted(set(concepts), reverse=True)))

    @property
    def kind(self) -> Kind | Literal["mixed"]:
        """The kind of all its concepts; "mixed" for a style and an object at once."""
        kinds = {c.kind for c in self.concepts}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    def names(self, kind: Kind) -> frozenset[str]:
        """Names of its concepts of this kind."""
        return frozenset(c.name for c in self.concepts if c.kind == kind)

    def involves(self, style: str, obj: str) -> bool:
        """Whether a picture of this style and object shows any of its concepts."""
        return style in self.names("style") or obj in self.names("object")

    @classmethod
    def parse(cls, text: str) -> Target:
        """Inverse of `str`."""
        return cls(tuple(Concept.parse(part) for part in text.split("+")))


@dataclass(frozen=True)
class GenerationRequest:
    """One picture to sample. Its initial noise is a function of (`seed`, `noise_key`, latent shape) alone.

    `style` and `object` are the labels that judges compare with; methods never see them. `height` and `width` in px.
    """

    prompt: str
    style: str
    object: str
    seed: int
    noise_key: str
    steps: int
    guidance_scale: float
    height: int
    width: int
    scheduler: str = "ddim"

    @cached_property
    def id(self) -> str:
        """Content hash of all fields."""
        return content_hash(asdict(self))


@dataclass(frozen=True)
class ConceptTexts:
    """What a suite tells methods about a concept: how it is named, what to put in its place, what must stay."""

    target: str
    """The concept as a phrase ("neon style", "An image of house.")."""
    anchor: str
    """The same phrase with what should take its place."""
    pairs: tuple[tuple[str, str], ...]
    """(concept, replacement) phrases that end with their subject, for methods that edit the subject's tokens."""
    retain: tuple[str, ...]
    """Prompts of other concepts, never the evaluation's own pairs of prompt and seed."""


@dataclass(frozen=True)
class Assets:
    """What a suite provides for its model beside texts."""

    hookpoints: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)
    """The blocks that decide concepts of a kind (`python -m bench locate`)."""
    sae_folder: Path | None = None
    """Its sparse autoencoders, a folder `unet.<hook point>` each."""
    statistics: Mapping[Kind, str] = field(default_factory=dict)
    """Of SAEs without statistics: by kind of concept, the digest of the pictures that they are gathered from."""
    latents: Mapping[Kind, Path] = field(default_factory=dict)
    """Instead of these pictures, files of latents that the authors' scripts left, by kind: pickled {concept: [prompts, steps, latents]}."""
    examples: str = "sampled"
    """Which pictures methods train on: a name or digest of the suite's own, or "sampled" by the model itself."""
    hint: str = ""
    """How to get its files where they are missing."""


@dataclass(frozen=True)
class Floors:
    """Accuracies of the unedited model under which a table is invalid (shares in [0, 1])."""

    style: float
    object: float


@dataclass(frozen=True)
class MetricRules:
    """The choices that protocols make differently, part of the protocol's version."""

    cra_includes_target: bool
    """Whether pictures prompted with the target count for CRA (UnlearnCanvas' code: yes; its README: no)."""
    uncounted: tuple[str, ...] = ()
    """Styles that are prompted but are no concepts: on their pictures only objects are judged."""
    style_cra_plain: bool = False
    """Whether, where a style is erased, CRA is of pictures prompted without any style (style "") alone, as in SAeUron's scripts."""
    shared_noise: bool = False
    """Whether all pictures of a seed share their initial noise, so that only seeds are independent."""


@dataclass(frozen=True)
class Distance:
    """A distance between a method's retained pictures and true ones that a suite reports."""

    key: str
    """Its column in tables and records."""
    network: str
    """Whose features it is measured in."""
    measure: Literal["kernel", "frechet"]


@dataclass(frozen=True)
class Card:
    """What a method is and whom to cite."""

    title: str
    paper: str
    """arXiv id or URL; empty for controls."""
    bibtex: str
    supports: tuple[Kind, ...]
    control: bool = False
    """Controls are shown, not ranked."""
    cite_instead: str = ""
    """Of a method without a paper of its own: whom to cite."""
    notes: str = ""


SCHEMA = 2
"""Of records as files."""


@dataclass(frozen=True)
class Record:
    """All that a table needs of one method in one run: one outcome per target × picture, feature distances, cost.

    `outcomes` holds columns of equal length: target, style, object, seed, style_pred, object_pred and far (whether a picture is
    far from every class, null where not measured). For `none`, which erases nothing,
    target is "". `distances` maps a target to {"kernel": …, "frechet": … or null, "n": …,
    "seeds": {"kernel": {seed: …}}} (of one seed's pictures alone);
    `cost` holds fits (how many were timed), fit_seconds, shared_seconds (of what fits share, in all), seconds_per_image,
    ratio_to_none, peak_memory_mb, stored_mb (null where not measured); `missing` maps a target to the reason why it has no outcomes.
    """

    method: str
    label: str
    version: int
    config: Mapping[str, Any]
    card: Card
    protocol: str
    numerics: Mapping[str, Any]
    outcomes: Mapping[str, list[Any]]
    distances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None
    """What tuning was allowed and what it found per target: {"budget": …, "configs": …}; None for an untuned row."""
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Per target, digests of the files that the fit read beside the model."""
    attacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By an attack's label: attack (its name), version, config, card, seconds (of all goals), missing (target → why), outcomes (columns of
    equal length: target, style, object, seed, clean, success, confirmed, gradient_steps, judged, prompt …; `bench.metrics.robustness`)."""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """One JSON object with sorted keys, a column on a line each (`bench.columns`)."""
        body = {**vars(self), "card": asdict(self.card), "outcomes": _each(self.outcomes, coded)}  # not the slow deep copy of `asdict`
        body["attacks"] = {name: {**own, "outcomes": _each(own["outcomes"], coded)} for name, own in self.attacks.items()}
        return seal(lines(body) + "\n").decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        body = unsealed(text.encode() if isinstance(text, str) else text)
        if body["schema"] != SCHEMA:
            raise ValueError(f"record schema {body['schema']} is not {SCHEMA}")
        card = body.pop("card")
        body["outcomes"] = _each(body["outcomes"], decoded)
        body["attacks"] = {name: {**own, "outcomes": _each(own["outcomes"], decoded)} for name, own in body["attacks"].items()}
        return cls(card=Card(**{**card, "supports": tuple(card["supports"])}), **body)


def _each(columns: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: change(column) for name, column in columns.items()}

"""What a result is identified by: the hash of all that changes it, and of nothing else.

Not part of it: paths, labels, engines, how many processes there are. Versions of libraries beside torch are recorded with results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.suites.suite import Suite
from bench.types import Card, GenerationRequest, Target, content_hash

IDENTITY_VERSION = 4


@dataclass(frozen=True)
class MethodSpec:
    """A method with its resolved configuration; `label` names it in tables."""

    name: str
    label: str
    version: int
    config: Mapping[str, Any]
    card: Card
    row_wise: bool
    continues: bool = False
    """Whether it can go on from an earlier erasure."""
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per target, the configuration that tuning found for it; other targets have `config`."""
    budget: Mapping[str, Any] | None = None
    """What the tuning was allowed, None for an untuned row."""
    paths: tuple[str, ...] = ()
    """Parameters that name files: their digests are part of identities, they are not."""
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Per target, digests of the files that its fit reads."""
    file: str = ""
    """Of a method that is no plug-in, "path/to/file.py:Class"."""

    @property
    def address(self) -> str:
        """What the registry finds it by."""
        return self.file or self.name

    def config_for(self, target: Target | None) -> Mapping[str, Any]:
        """The configuration that a target is fitted with."""
        return self.tuned.get(str(target), self.config)


@dataclass(frozen=True)
class Identity:
    """What all units of a run share and what changes their contents."""

    model: str
    """Digest of the base model."""
    judges: Mapping[str, str]
    """Digest per role."""
    protocol: str
    codec: str
    numerics: Mapping[str, Any]
    fit_seed: int

    def of_fit(self, suite: Suite, spec: MethodSpec, target: Target | None, steps: int, before: str = "") -> str:
        """An erasure enters by its recipe; one that goes on from another, by that one's identity too."""
        texts = [asdict(suite.texts(concept)) for concept in target.concepts] if target else []
        return content_hash({
            "identity": IDENTITY_VERSION, "model": self.model, "method": spec.name, "version": spec.version,
            "config": {key: value for key, value in spec.config_for(target).items() if key not in spec.paths},
            "inputs": dict(spec.inputs.get(str(target), {})), "target": str(target) if target else "", "texts": texts,
            "seed": self.fit_seed, "steps": steps, "guidance_scale": suite.guidance_scale, "numerics": dict(self.numerics),
            **({"before": before} if before else {}),
        })  # fmt: skip

    def of_unit(self, fit: str, requests: Sequence[GenerationRequest]) -> str:
        """All of the fit's identity, and what happens after it."""
        return content_hash({
            "identity": IDENTITY_VERSION, "fit": fit, "requests": [request.id for request in requests],
            "judges": dict(self.judges), "protocol": self.protocol, "codec": self.codec,
        })  # fmt: skip

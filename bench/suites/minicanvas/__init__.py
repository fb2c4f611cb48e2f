"""minicanvas: UnlearnCanvas in miniature, 10 styles x 12 objects at 64 px, with its own trained Stable Diffusion model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.suites.minicanvas.captions import (
    OBJECT_ONLY,
    OBJECT_SYNONYMS,
    OTHERS,
    PUBLISHED,
    SPLITS,
    STYLE_ONLY,
    STYLE_SYNONYMS,
    TUNING,
    fill,
)
from bench.suites.minicanvas.render import NO_OBJECT, OBJECTS, SIZE, STYLES, object_mask, render_many
from bench.suites.suite import JudgeFiles, JudgeRole, Preset, Split, Suite
from bench.types import Assets, Concept, ConceptTexts, Distance, Floors, GenerationRequest, Kind, MetricRules

_WEIGHTS = Path(__file__).parent / "weights"
_REFERENCE_SEED, _REFERENCE_PER_CELL = 950_000_000, 8
_MASKED_SEED, _EXAMPLE_SEED = 960_000_000, 970_000_000
HOOKPOINTS: dict[Kind, tuple[str, ...]] = {
    "style": ("down_blocks.1.attentions.0",),
    "object": ("mid_block.attentions.0", "up_blocks.1.attentions.1"),
}
"""Where styles and objects are decided, by `python -m bench locate`, and for objects the last block of that resolution after it:
what the 4 × 4 map of the first one lets through is caught on 8 × 8 there."""
_QUICK = ("style:neon", "style:mosaic", "style:sketch", "object:fish", "object:heart", "object:umbrella")


class MiniCanvas(Suite):
    """The embedded world. `weights` is a folder made by `python -m bench build minicanvas`, by default the shipped one."""

    name, version, profile = "minicanvas", 1, "official"
    styles, objects = STYLES, OBJECTS
    presets = {
        "smoke": Preset(
            "8 pictures or fewer a method, 4 steps; shows that everything works", ("object:fish",), 30, 1, 4, own=3, ranked=False
        ),
        "quick": Preset("3 styles and 3 objects, a quarter of the other cells, 1 seed", _QUICK, 4, 1, 20),
        "full": Preset("all 22 concepts on the whole grid, 5 seeds", ("all",), 1, 5, 20),
    }
    rules = MetricRules(cra_includes_target=False)
    floors = Floors(style=0.95, object=0.90)
    guidance_scale = 4.0
    size = (SIZE, SIZE)
    codec = "none"
    distances = (Distance("kernel", "artifact", "kernel"), Distance("frechet", "artifact", "frechet"))
    method_settings = {
        "esd": {"learning_rate": 3e-4, "iterations": 100, "batch": 8, "trajectories": 16},
        "sld": {"strength": "max"},
        "ca": {"learning_rate": 3e-4, "iterations": 200, "batch": 8, "pictures": 64},
        "salun": {"learning_rate": 3e-4, "iterations": 100, "batch": 8, "pictures": 120},
        "ediff": {"learning_rate": 3e-4, "iterations": 100, "batch": 8, "pictures": 120},
        "shs": {"learning_rate": 3e-4, "iterations": 100, "batch": 8, "pictures": 120},
        "saemnesia": {"learning_rate": 1e-4},
        "concept-prune": {"sparsity": 0.1, "first_steps": 0.5},
        "fmn": {"learning_rate": 3e-4, "iterations": 100, "batch": 4, "pictures": 40},
        "mace-cfr": {"preserve_scale": 0.1},
        "seot": {"start": 0.0},  # of 20 steps the first four settle what this small model shows
        "steerers": {"strength": -1.0, "tokens": 256_000, "batch": 256, "learning_rate": 1e-2, "dead_tokens": 100_000},
        "spm": {
            "learning_rate": 1e-2, "iterations": 100, "batch": 8, "trajectories": 8, "denoising_steps": 20, "anchors": 1,
            "anchor_strength": 10.0,
        },
    }  # fmt: skip

    sae_settings = {
        "k": 16, "expansion_factor": 8, "rounds": 5, "pictures": 480, "steps": 2_000, "learning_rate": 1e-3, "dead_tokens": 400_000,
        "halves": "both",
    }  # fmt: skip
    sae_pictures = {"statistics": 600, "select": 1_320, "calibrate": 1_320, "verify": 1_320}

    def __init__(self, weights: Path = _WEIGHTS) -> None:
        self._weights = weights

    @property
    def assets(self) -> Assets:
        """See `Suite.assets`."""
        return Assets(HOOKPOINTS, self._weights / "saes", examples="rendered-1")

    @property
    def tuned_folder(self) -> Path:
        """See `Suite.tuned_folder`."""
        return Path(__file__).parent / "tuned"

    def model_folder(self) -> Path:
        """See `Suite.model_folder`."""
        return self._weights / "model"

    def judge(self, role: JudgeRole) -> JudgeFiles:
        """See `Suite.judge`."""
        return JudgeFiles("two-head", self._weights / "classifiers" / role)

    def networks(self) -> dict[str, JudgeFiles]:
        """See `Suite.networks`."""
        return {"artifact": self.judge("artifact")}

    def artifact_reference(self) -> Path | None:
        """See `Suite.artifact_reference`; weights that are still being built may lack it."""
        path = self._weights / "artifacts" / "reference.safetensors"
        return path if path.is_file() else None

    def prompt(self, style: str, obj: str) -> str:
        """The template of UnlearnCanvas' own samplers."""
        return fill(PUBLISHED[0], style, obj)

    def split_prompt(self, style: str, obj: str, seed: int, split: Split) -> str:
        """See `Suite.split_prompt`."""
        templates = SPLITS[split]
        return fill(templates[seed % len(templates)], style, obj)

    def texts(self, concept: Concept) -> ConceptTexts:
        """Anchors: photo for a style (sketch for photo itself), an empty scene for an object, both known to the model."""
        if concept.kind == "style":
            anchor, phrase = "sketch" if concept.name == "photo" else "photo", "{} style"
            subjects = ("{}", "{} style", "An image in {} style")
        else:
            anchor, phrase = "nothing", "An image of {}."
            subjects = ("{}", "An image of {}", "A picture of {}")
        retained = tuple(fill(TUNING[0], style, obj) for style in STYLES for obj in OBJECTS if concept.name not in (style, obj))
        pairs = tuple((subject.format(concept.name), subject.format(anchor)) for subject in subjects)
        return ConceptTexts(phrase.format(concept.name), phrase.format(anchor), pairs, retained)

    def synonyms(self, concept: Concept) -> tuple[str, ...]:
        """See `Suite.synonyms`: those of training captions."""
        return (STYLE_SYNONYMS if concept.kind == "style" else OBJECT_SYNONYMS)[concept.name]

    def paraphrases(self, concept: Concept, style: str, obj: str) -> tuple[str, ...]:
        """See `Suite.paraphrases`: synonyms in the evaluation's wording, then in others."""
        words = self.synonyms(concept)
        pairs = [(word, obj) if concept.kind == "style" else (style, word) for word in words]
        return tuple(fill(template, *pair) for template in (*PUBLISHED, *OTHERS) for pair in pairs)

    def known_texts(self) -> tuple[str, ...]:
        """See `Suite.known_texts`: names, synonyms and templates."""
        words = [*STYLES, *OBJECTS, *(word for own in (STYLE_SYNONYMS, OBJECT_SYNONYMS) for some in own.values() for word in some)]
        return (*words, *(fill(template, "photo", "nothing") for template in (*PUBLISHED, *OTHERS, *STYLE_ONLY, *OBJECT_ONLY)))

    def example_pictures(self, requests: Sequence[GenerationRequest]) -> Any:
        """See `Suite.example_pictures`; rendered, from seeds that no network was trained on."""
        return render_many([(request.style, request.object, _EXAMPLE_SEED + request.seed) for request in requests])

    def masked_pictures(self, per_cell: int) -> tuple[list[tuple[str, str]], Any, Any]:
        """See `Suite.masked_pictures`; the renderer knows where it drew."""
        cells = [(s, o, _MASKED_SEED + k) for s in STYLES for o in OBJECTS for k in range(per_cell)]
        return [(s, o) for s, o, _ in cells], render_many(cells), np.stack([object_mask(*cell) for cell in cells])

    def reference_pictures(self) -> Iterator[tuple[list[tuple[str, str]], Any]]:
        """Eight rendered pictures a cell, whose seeds no network was trained on; all at once."""
        cells = [(s, o, _REFERENCE_SEED + k) for s in STYLES for o in OBJECTS for k in range(_REFERENCE_PER_CELL)]
        yield [(s, o) for s, o, _ in cells], render_many(cells)


SUITE = MiniCanvas()
PROFILES = {SUITE.profile: SUITE}
__all__ = ["NO_OBJECT", "PROFILES", "SUITE", "MiniCanvas"]

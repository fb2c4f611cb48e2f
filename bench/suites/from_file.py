"""A suite as data: a TOML file that names a model, concepts, prompts and a judge. `docs/suites.md` explains every entry."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.errors import BenchError
from bench.suites.suite import JudgeFiles, JudgeRole, Preset, Split, Suite
from bench.types import Assets, Concept, ConceptTexts, Floors, Kind, MetricRules


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgeEntry(_Strict):
    """Who judges."""

    kind: str = Field(description="A classifier by the name that `list classifiers` has, such as clip-zero-shot or two-head.")
    folder: Path


class PresetEntry(_Strict):
    """How much of the suite to run."""

    description: str = ""
    concepts: tuple[str, ...] = ("all",)
    grid: int = Field(1, ge=1)
    own: int = Field(1, ge=1)
    seeds: int = Field(1, ge=1)
    steps: int = Field(50, ge=1, le=1000)
    scheduler: str = "ddim"
    ranked: bool = True


class SuiteFile(_Strict):
    """The entries of the file; paths are relative to it."""

    name: str
    version: int = 1
    model: Path
    styles: tuple[str, ...] = Field(min_length=1)
    objects: tuple[str, ...] = Field(min_length=1)
    template: str = Field(description="With {style} and {object}.")
    other_templates: tuple[str, ...] = Field((), description="For pictures outside the evaluation; without any, the evaluation's.")
    style_anchor: str = "photo"
    object_anchor: str = "scene"
    size: tuple[int, int] = (512, 512)
    guidance_scale: float = 7.5
    codec: str = Field("none", pattern="none|jpeg")
    seeds: tuple[int, ...] = ()
    judge: JudgeEntry
    tuning_judge: JudgeEntry | None = None
    floors: tuple[float, float] = Field((0.0, 0.0), description="Accuracies of the unedited model, for styles and objects.")
    cra_includes_target: bool = False
    hookpoints: dict[Kind, tuple[str, ...]] = {}
    saes: Path | None = None
    method_settings: dict[str, dict[str, Any]] = {}
    presets: dict[str, PresetEntry]

    @field_validator("presets")
    @classmethod
    def _usual(cls, value: dict[str, PresetEntry]) -> dict[str, PresetEntry]:
        """Commands take their defaults from these two."""
        lacking = [name for name in ("quick", "full") if name not in value]
        if lacking:
            raise ValueError(f"there must be one called {lacking[0]}")
        return value


class FileSuite(Suite):
    """What such a file says. Without true pictures there are no distances."""

    profile, distances = "file", ()

    def __init__(self, path: Path, entries: SuiteFile) -> None:
        self.path, self.entries = path, entries
        self.name, self.version, self.styles, self.objects = entries.name, entries.version, entries.styles, entries.objects
        self.presets = {name: Preset(**preset.model_dump()) for name, preset in entries.presets.items()}
        self.rules, self.floors = MetricRules(entries.cra_includes_target), Floors(*entries.floors)
        self.guidance_scale, self.size, self.seeds = entries.guidance_scale, entries.size, entries.seeds
        self.codec = "jpeg" if entries.codec == "jpeg" else "none"
        self.method_settings: Mapping[str, Mapping[str, Any]] = entries.method_settings

    @property
    def key(self) -> str:
        """See `Suite.key`."""
        return str(self.path)

    @property
    def assets(self) -> Assets:
        """See `Suite.assets`."""
        saes = self._place(self.entries.saes) if self.entries.saes else None
        return Assets(self.entries.hookpoints, saes)

    def model_folder(self) -> Path:
        """See `Suite.model_folder`."""
        return self._place(self.entries.model)

    def judge(self, role: JudgeRole) -> JudgeFiles:
        """See `Suite.judge`."""
        entry = {"evaluation": self.entries.judge, "tuning": self.entries.tuning_judge}.get(role)
        if entry is None:
            raise BenchError(f"{self.path} names no {role} judge: add one, or do without.")
        classes = {"styles": self.styles, "objects": self.objects}
        return JudgeFiles(entry.kind, self._place(entry.folder), {} if entry.kind == "two-head" else classes)

    def prompt(self, style: str, obj: str) -> str:
        """See `Suite.prompt`."""
        return self._fill(self.entries.template, style, obj)

    def split_prompt(self, style: str, obj: str, seed: int, split: Split) -> str:
        """See `Suite.split_prompt`."""
        others = self.entries.other_templates
        return self._fill(others[seed % len(others)], style, obj) if others and split != "locate" else self.prompt(style, obj)

    def texts(self, concept: Concept) -> ConceptTexts:
        """See `Suite.texts`."""
        name = concept.name.replace("_", " ")
        anchor = self.entries.style_anchor if concept.kind == "style" else self.entries.object_anchor
        forms = ("{}", "{} style", "An image in {} style") if concept.kind == "style" else ("{}", "An image of {}", "A picture of {}")
        phrase = forms[1]
        retained = tuple(self.prompt(style, obj) for style, obj in self.cells if concept.name not in (style, obj))
        return ConceptTexts(phrase.format(name), phrase.format(anchor), tuple((f.format(name), f.format(anchor)) for f in forms), retained)

    def reference_pictures(self) -> Iterator[tuple[list[tuple[str, str]], Any]]:
        """See `Suite.reference_pictures`: there are none."""
        return iter(())

    def _fill(self, template: str, style: str, obj: str) -> str:
        return template.format(style=style.replace("_", " "), object=obj.replace("_", " "))

    def _place(self, path: Path) -> Path:
        return self.path.parent / path


@cache
def load_suite(path: Path) -> FileSuite:
    """The suite of a file. BenchError says what is wrong with it."""
    try:
        entries = SuiteFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        entries.template.format(style="", object="")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BenchError(f"{path}: {place}: {first['msg'].lower()} (docs/suites.md).") from error
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise BenchError(f"{path} is no suite ({error}): docs/suites.md shows one.") from error
    return FileSuite(path, entries)

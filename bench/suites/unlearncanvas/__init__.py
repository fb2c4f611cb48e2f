"""UnlearnCanvas (arXiv:2402.11846): 50 styles and 20 objects on a fine-tuned Stable Diffusion 1.5, in two protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.assets import digest_of, find, folder, how_to_get, locate, locate_if_here, place_of
from bench.errors import BenchError
from bench.suites.suite import JudgeFiles, JudgeRole, Preset, Split, Suite, Tuned
from bench.suites.unlearncanvas.anchors import LINES, sentences
from bench.suites.unlearncanvas.pictures import example_pictures, true_pictures
from bench.suites.unlearncanvas.published import ASSETS, published_parameters
from bench.suites.unlearncanvas.vocabulary import OBJECTS, SEED_IMAGES, STYLES, SYNONYMS, THEMES
from bench.types import Assets, Concept, ConceptTexts, Distance, Floors, GenerationRequest, Kind, MetricRules

HOOKPOINTS: dict[Kind, tuple[str, ...]] = {"style": ("up_blocks.1.attentions.2",), "object": ("up_blocks.1.attentions.1",)}
INCEPTIONS = ("inception-torchvision", "inception-clean-fid")
LATENTS: dict[Kind, str] = {"style": "style-latents", "object": "object-latents"}
SEEDS = (188, 288, 588, 688, 888)
_QUICK = ("style:Abstractionism", "style:Cartoon", "style:Van_Gogh", "object:Cats", "object:Horses", "object:Towers")


@dataclass(frozen=True)
class Profile:
    """What public descriptions and scripts of the protocol leave open or do differently, decided."""

    name: str
    version: int
    template: str
    """Of a picture of {object} in {style}."""
    others: Literal["seed-images", "plain"]
    """What is prompted beside the 50 styles: the 51st theme, the photos, by its name; or each object without a style."""
    rules: MetricRules
    noise: Literal["cell", "seed"] = "cell"
    plain_template: str = "An image of {object}."
    """Of a picture without a style."""


OFFICIAL = Profile(
    "official", 1, "A {object} image in {style} style.", "seed-images",
    # As `accuracy.py` counts; that retention of styles is over the other 49 is the authors' word (their issue 13).
    MetricRules(cra_includes_target=True, uncounted=(SEED_IMAGES,)),
)  # fmt: skip
SAEURON = Profile(
    "saeuron", 1, "An image of {object} in {style} style.", "plain", MetricRules(cra_includes_target=True, style_cra_plain=True)
)


class UnlearnCanvas(Suite):
    """One profile of UnlearnCanvas. The model, the classifiers and the SAEs are published files (`python -m bench assets list`)."""

    name = "unlearncanvas"
    styles, objects = STYLES, OBJECTS
    presets = {
        "smoke": Preset(
            "8 pictures or fewer a method, 4 steps; shows that everything works", ("object:Dogs",), 257, 1, 4, own=17, ranked=False,
            statistics=1,
        ),
        "quick": Preset("3 styles and 3 objects, a fifth of the other cells, 1 seed", _QUICK, 5, 1, 100),
        "full": Preset("the protocol: all 70 concepts on the whole grid, 5 seeds", ("all",), 1, 5, 100),
    }  # fmt: skip
    floors = Floors(style=0.9, object=0.9)
    guidance_scale = 9.0
    size = (512, 512)
    codec = "jpeg"
    distances = (
        Distance("fid_unlearncanvas", "inception-torchvision", "frechet"), Distance("fid", "inception-clean-fid", "frechet"),
        Distance("kid", "inception-clean-fid", "kernel"),
    )  # fmt: skip
    seeds = SEEDS
    files = ASSETS
    method_settings = {
        # The published rule and, for styles, strength; objects were searched one by one (`class_params.pth`).
        "saeuron": {"detection": "saeuron-code", "percentile": 99.999, "multiplier": -1.0},
        "saeuron-detect": {"detection": "saeuron-code", "percentile": 99.999},
        "esd": {"iterations": 1000, "learning_rate": 1e-5},
    }

    def __init__(self, profile: Profile) -> None:
        self.choices = profile
        self.profile, self.version, self.noise = profile.name, profile.version, profile.noise
        self.rules = replace(profile.rules, shared_noise=profile.noise == "seed")
        self.default = profile is OFFICIAL

    @property
    def assets(self) -> Assets:
        """See `Suite`."""
        places = {kind: (ASSETS[name], locate_if_here(ASSETS[name])) for kind, name in LATENTS.items()}
        latents = {kind: own if own.is_file() else next(own.glob(asset.parts[0])) for kind, (asset, own) in places.items() if own}
        saes = ASSETS["saes"]
        examples = digest_of(ASSETS["images"]) if self._pictures() else "sampled"
        return Assets(HOOKPOINTS, locate_if_here(saes) or place_of(saes), latents=latents, examples=examples, hint=how_to_get(saes))

    def assets_of(self, preset: Preset) -> Assets:
        """See `Suite.assets_of`; files of latents take the place of pictures."""
        found = super().assets_of(preset)
        return replace(found, statistics={**found.statistics, **{kind: digest_of(ASSETS[LATENTS[kind]]) for kind in found.latents}})

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """See `Suite.cells`: 51 themes in the classifier's order, or 50 styles and then none."""
        rows = THEMES if self.choices.others == "seed-images" else (*STYLES, "")
        return tuple((style, obj) for style in rows for obj in OBJECTS)

    def model_folder(self) -> Path:
        """See `Suite.model_folder`."""
        return locate(ASSETS["model"])

    def judge(self, role: JudgeRole) -> JudgeFiles:
        """See `Suite.judge`: the published classifiers evaluate; there are no others."""
        if role != "evaluation":
            more = ": --judge evaluation tunes on those, and the row says so" if role == "tuning" else ""
            raise BenchError(f"{self.key} publishes no {role} classifier, only those that evaluate{more}.")
        return JudgeFiles("unlearncanvas", locate(ASSETS["classifiers"]), {"styles": THEMES, "objects": OBJECTS})

    def prompt(self, style: str, obj: str) -> str:
        """See `Suite.prompt`."""
        template = self.choices.template if style else self.choices.plain_template
        return template.format(object=obj, style=style.replace("_", " "))

    def synonyms(self, concept: Concept) -> tuple[str, ...]:
        """See `Suite.synonyms`."""
        return SYNONYMS.get(concept.name, ())

    def split_prompt(self, style: str, obj: str, seed: int, split: Split) -> str:
        """See `Suite.split_prompt`: the anchor sentences with the style's name."""
        if split in ("locate", "example"):
            return self.prompt(style, obj)
        sentence = sentences(obj, locate_if_here(ASSETS["anchor-prompts"]))[seed % LINES]
        return f"{sentence} in {style.replace('_', ' ')} style." if style else f"{sentence}."

    def statistics_requests(self, kind: Kind, preset: Preset) -> tuple[GenerationRequest, ...]:
        """See `Suite.statistics_requests`: as published, every style with the first sentence of each object, or every object with its 80.

        Initial noise is each request's own; the public code draws it in one stream, which the order of prompts decides.
        """
        anchors = locate_if_here(ASSETS["anchor-prompts"])
        found = []
        for name in STYLES if kind == "style" else OBJECTS:
            for k in range(preset.statistics or (len(OBJECTS) if kind == "style" else LINES)):
                if kind == "style":
                    prompt = f"{sentences(OBJECTS[k], anchors)[0]} in {name.replace('_', ' ')} style."
                else:
                    prompt = f"{sentences(name, anchors)[k]}."
                labels = {"style": name if kind == "style" else "", "object": name if kind == "object" else ""}
                found.append(GenerationRequest(
                    prompt=prompt, **labels, seed=1 + k, noise_key=f"statistics/{name}", steps=preset.steps,
                    guidance_scale=self.guidance_scale, height=self.size[0], width=self.size[1],
                ))  # fmt: skip
        return tuple(found)

    @property
    def tuned_folder(self) -> Path:
        """See `Suite.tuned_folder`: beside the published files."""
        return folder() / self.name / "tuned" / self.profile

    def tuned(self, method: str, shared: bool = False) -> Tuned | None:
        """See `Suite.tuned`; without a file of one's own, the published parameters of saeuron for objects, where they are here."""
        own = super().tuned(method, shared)
        path = locate_if_here(ASSETS["class-params"]) if method == "saeuron" and own is None and not shared else None
        return own if path is None else published_parameters(path if path.is_file() else path / "class_params.pth")

    def texts(self, concept: Concept) -> ConceptTexts:
        """See `Suite.texts`: a photo for a style, a scene for an object."""
        name = concept.name.replace("_", " ")
        if concept.kind == "style":
            target, anchor = f"{name} style", "Photo style"
            pairs = tuple((form.format(name), form.format("Photo")) for form in ("{}", "{} style", "An image in {} style"))
        else:
            target, anchor = f"An image of {name}.", "An image of a scene."
            pairs = tuple((form.format(name), form.format("scene")) for form in ("{}", "An image of {}", "A picture of {}"))
        retained = tuple(self.prompt(style, obj) for style, obj in self.cells if concept.name not in (style, obj))
        return ConceptTexts(target, anchor, pairs, retained)

    def _pictures(self) -> Path | None:
        """The folders of UnlearnCanvas' pictures; None where they are not here, or only as Parquet files, which have lost their numbers."""
        place = locate_if_here(ASSETS["images"])
        return place if place and (place / STYLES[0]).is_dir() else None

    def example_pictures(self, requests: Sequence[GenerationRequest]) -> Any | None:
        """See `Suite.example_pictures`."""
        place = self._pictures()
        return example_pictures(place, [(r.style, r.object, r.seed) for r in requests], self.size) if place else None

    def networks(self) -> dict[str, JudgeFiles]:
        """See `Suite.networks`: Inception in both forms, where it is here and so are the pictures of UnlearnCanvas."""
        if find(ASSETS["images"]) is None:
            return {}
        return {name: JudgeFiles(name, locate(ASSETS[name])) for name in INCEPTIONS if find(ASSETS[name]) is not None}

    def reference_digest(self) -> str:
        """See `Suite.reference_digest`."""
        return digest_of(ASSETS["images"])

    def reference_pictures(self) -> Iterator[tuple[list[tuple[str, str]], Any]]:
        """See `Suite.reference_pictures`: pictures 1 to 5 of every theme and object, as in the published FID."""
        themes = THEMES if self.choices.others == "seed-images" else STYLES
        yield from true_pictures(locate(ASSETS["images"]), themes)


PROFILES = {profile.name: UnlearnCanvas(profile) for profile in (OFFICIAL, SAEURON)}

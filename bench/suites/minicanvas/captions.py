"""What minicanvas calls its styles and objects: names, synonyms, templates, and seeded training captions.

Evaluation asks with `PUBLISHED` and the names; `OTHERS` and the synonyms exist so that paraphrases and implicit prompts
mean something to the model. `TUNING` is the part of `OTHERS` that method tuning may use and evaluation never does.
"""

from __future__ import annotations

import numpy as np

from bench.suites.minicanvas.render import NO_OBJECT, OBJECTS, STYLES

PUBLISHED = ("A {object} image in {style} style.", "An image of {object} in {style} style.")
TUNING = ("A picture of {object} in {style} style.", "A {style} rendering of {object}.")
OTHERS = (
    *TUNING,
    "{object}, {style} style",
    "{style} style {object}",
    "A {style} picture showing {object}.",
    "{object} drawn in the style of {style}.",
    "This is {object} made in {style} style.",
    "Art of {object}, {style}.",
    "Please show {object} in {style} look.",
    "A small picture with {object} in it, {style} style.",
)
SPLITS: dict[str, tuple[str, ...]] = {
    "locate": PUBLISHED[:1],
    "train": (*PUBLISHED, *OTHERS),
    "statistics": OTHERS[2:4],
    "select": OTHERS[2:4],
    "calibrate": OTHERS[4:6],
    "verify": OTHERS[6:8],
    "tune": TUNING,
    "artifact": PUBLISHED[:1],
    "example": (*PUBLISHED, *TUNING),
}
"""Templates of the pictures that are sampled for something else than evaluation."""
STYLE_ONLY = ("An image in {style} style.", "{style} style", "Art in {style} style.")
OBJECT_ONLY = ("An image of {object}.", "{object}", "A {object} image.")

STYLE_SYNONYMS: dict[str, tuple[str, ...]] = {
    "photo": ("photograph", "camera snapshot", "realistic shaded studio"),
    "neon": ("glowing tube", "luminous sign", "bright light on black"),
    "blueprint": ("technical plan", "white on blue drafting", "architect grid"),
    "mosaic": ("square tile", "tessellated", "little stones and grout"),
    "sketch": ("pencil", "hatched graphite", "hand made line"),
    "sunset": ("evening silhouette", "dusk shadow", "orange sky"),
    "halftone": ("newspaper dot", "printed screen", "old comic press"),
    "stripes": ("striped", "horizontal band", "pastel bars"),
    "frost": ("icy", "frozen window", "cold winter blur"),
    "pop": ("four colour poster", "loud quadrant", "bright gallery print"),
}
OBJECT_SYNONYMS: dict[str, tuple[str, ...]] = {
    "house": ("cottage", "home with a roof", "building with a door"),
    "tree": ("pine", "fir with a trunk", "evergreen from the forest"),
    "fish": ("trout", "swimmer with fins", "animal from the sea"),
    "star": ("pentagram", "five pointed shape", "twinkling thing in the night"),
    "cup": ("mug", "tea vessel", "something to drink coffee from"),
    "car": ("automobile", "vehicle with two wheels in view", "taxi"),
    "flower": ("blossom", "daisy", "plant with petals"),
    "boat": ("ship", "sailing vessel", "yacht with a mast"),
    "heart": ("valentine", "symbol of love", "romantic shape"),
    "mushroom": ("toadstool", "spotted fungus", "cap on a stem"),
    "umbrella": ("parasol", "rain shade", "thing that keeps you dry"),
    "key": ("latchkey", "tool that opens a lock", "metal door opener"),
    NO_OBJECT: ("nothing", "empty scene", "bare background"),
}


def fill(template: str, style: str, obj: str) -> str:
    """The template with names put in; the empty scene is asked for as "nothing"."""
    return template.format(style=style, object="nothing" if obj == NO_OBJECT else obj)


def training_caption(style: str, obj: str, rng: np.random.Generator) -> str:
    """A random caption of a picture: 40 % synonyms per slot, 6 % each name the style or the object alone."""
    draw = rng.random()
    pool = STYLE_ONLY if draw < 0.06 else OBJECT_ONLY if draw < 0.12 else PUBLISHED if draw < 0.5 else OTHERS
    words = []
    for name, synonyms in ((style, STYLE_SYNONYMS[style]), (obj, OBJECT_SYNONYMS[obj])):
        words.append(synonyms[rng.integers(len(synonyms))] if rng.random() < 0.4 else name)
    return fill(pool[rng.integers(len(pool))], *words)


def training_cells(count: int, seed: int, empty: float) -> list[tuple[str, str, int]]:
    """`count` (style, object, picture seed) cells, styles and objects balanced; a share `empty` shows no object.

    Picture seeds start at `seed` · 10⁷, so that different `seed` values share no picture.
    """
    rng = np.random.default_rng(seed)
    none = rng.random(count) < empty
    pairs = [(s, o) for s in STYLES for o in OBJECTS]
    return [(pairs[i % len(pairs)][0], NO_OBJECT if none[i] else pairs[i % len(pairs)][1], seed * 10_000_000 + i) for i in range(count)]

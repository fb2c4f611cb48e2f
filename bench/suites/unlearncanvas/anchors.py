"""Sentences about objects from which latents are chosen and detectors are made: the published ones, or the project's own.

The published "anchor prompts" (those of the concept-ablation baseline) are 20 files `sd_prompt_{Object}.txt` of 80 lines each,
in a checkout of UnlearnCanvas or SAeUron; they are read from there and never shipped. Without them, sentences are put
together here: an object in one of 16 scenes, seen in one of 5 ways.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from bench.errors import BenchError
from bench.suites.unlearncanvas.vocabulary import OBJECTS

LINES = 80

_SUBJECTS = {
    "Architectures": "a grand building", "Bears": "a brown bear", "Birds": "a small bird", "Butterfly": "a butterfly", "Cats": "a cat",
    "Dogs": "a dog", "Fishes": "a fish", "Flame": "a flame", "Flowers": "a bunch of flowers", "Frogs": "a frog", "Horses": "a horse",
    "Human": "a person", "Jellyfish": "a jellyfish", "Rabbits": "a rabbit", "Sandwiches": "a sandwich", "Sea": "the sea",
    "Statues": "a statue", "Towers": "a tower", "Trees": "a tree", "Waterfalls": "a waterfall",
}  # fmt: skip
_SCENES = (
    "in the early morning", "at dusk", "under a clear sky", "in heavy rain", "with mist all around", "in warm sunlight", "in the shade",
    "on a winter day", "on a summer afternoon", "in front of distant hills", "beside a quiet path", "near the water", "against a dark wall",
    "in an open field", "in a small village", "at the edge of a forest",
)  # fmt: skip
_VIEWS = ("{} {}", "{} {}, seen from afar", "a close view of {} {}", "{} {}, in the middle of the picture", "{} {}, with nobody near")


@lru_cache
def sentences(obj: str, folder: Path | None) -> tuple[str, ...]:
    """80 sentences about an object, without a full stop: those of the folder, or the project's own. BenchError for a bad file."""
    if folder is None:
        own = [view.format(_SUBJECTS[obj], scene) for view in _VIEWS for scene in _SCENES]
        return tuple(sentence[0].upper() + sentence[1:] for sentence in own)
    path = folder / f"sd_prompt_{obj}.txt"
    try:
        lines = [line.strip().rstrip(".") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"The anchor prompts {path} cannot be read ({error}): give a folder with sd_prompt_{{Object}}.txt.") from error
    if len(lines) < LINES:
        raise BenchError(f"{path} has {len(lines)} lines, {LINES} are needed: give the published file.")
    return tuple(lines[:LINES])


assert tuple(_SUBJECTS) == OBJECTS
assert len(_SCENES) * len(_VIEWS) == LINES

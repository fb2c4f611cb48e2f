"""Records of imagined methods on three styles and three objects, for the tests of the leaderboard."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

from bench.leaderboard import export
from bench.leaderboard.build import build
from bench.leaderboard.table import Leaderboard, Row
from bench.types import Card, Floors, MetricRules, Record

STYLES, OBJECTS, SEEDS = ("a", "b", "c"), ("x", "y", "z"), (1, 2)
RULES, FLOORS = MetricRules(cra_includes_target=True), Floors(style=0.9, object=0.9)
STYLE_TARGETS = tuple(f"style:{name}" for name in STYLES)
ALL_TARGETS = (*STYLE_TARGETS, *(f"object:{name}" for name in OBJECTS))
Judge = Callable[[str, str, str, int], tuple[str | None, str | None]]


def perfect(target: str, style: str, obj: str, seed: int) -> tuple[str, str]:
    """The erased concept is gone, all else is as asked."""
    erased = target.split("+")
    return ("gone" if f"style:{style}" in erased else style), ("no object" if f"object:{obj}" in erased else obj)


def half(target: str, style: str, obj: str, seed: int) -> tuple[str, str]:
    """Works on the first of two seeds."""
    return perfect(target, style, obj, seed) if seed == 1 else (style, obj)


def wreck(target: str, style: str, obj: str, seed: int) -> tuple[str, str]:
    """Erases everything."""
    return "gone", "no object"


def record(label: str, judge: Judge = perfect, targets: tuple[str, ...] = STYLE_TARGETS, **changes: Any) -> Record:
    cells = list(itertools.product(targets, STYLES, OBJECTS, SEEDS))
    verdicts = [judge(*cell) for cell in cells]
    names = ("target", "style", "object", "seed")
    outcomes: dict[str, list[Any]] = {name: [cell[i] for cell in cells] for i, name in enumerate(names)}
    outcomes |= {f"{kind}_pred": [verdict[i] for verdict in verdicts] for i, kind in enumerate(("style", "object"))}
    fields: dict[str, Any] = {
        "method": label.lower(),
        "version": 1,
        "config": {},
        "card": Card(label, "", f"@article{{{label.lower()}, title={{On {label}}}}}", ("style", "object")),
        "protocol": "mini@v1",
        "numerics": {"dtype": "float32"},
        "distances": {target: {"kernel": 0.001 * (i + 1), "frechet": None, "n": 12} for i, target in enumerate(targets)},
        "cost": {"fit_seconds": 1.25, "seconds_per_image": 0.5, "ratio_to_none": 1.0, "peak_memory_mb": 700.0, "stored_mb": None},
    }
    return Record(label=label, **{"outcomes": outcomes, **fields, **changes})


def none(label: str = "none", **changes: Any) -> Record:
    card = Card("Unedited", "", "", ("style", "object"), control=True)
    fixed = {"method": "none", "card": card, "cost": {"fit_seconds": 0.0}, "distances": {}}
    return record(label, targets=("",), **{**fixed, **changes})


def made(*records: Record, floors: Floors = FLOORS) -> Leaderboard:
    return build(records, RULES, floors)


def row(leaderboard: Leaderboard, label: str) -> Row:
    return next(row for row in leaderboard.rows if row.label == label)


def lines(leaderboard: Leaderboard, **where: str) -> list[dict[str, str]]:
    """Lines of the CSV file with these fields."""
    found = csv.DictReader(io.StringIO(export.to_csv(leaderboard)))
    return [line for line in found if all(line[name] == value for name, value in where.items())]


def everything() -> list[Record]:
    """Records that show most of what can happen, with every character that LaTeX or Markdown would trip over."""
    odd = record("[α] 50% & $2_{x}^2 #1 ~ \\ <b>|é", half, ALL_TARGETS, numerics={"dtype": "bfloat16"}, method="odd")
    short = record("Short", targets=ALL_TARGETS[:-1], missing={"object:z": "out of\nmemory & time_100%"})
    return [
        none(),
        record("Good", targets=ALL_TARGETS),
        odd,
        short,
        record("Wreck", wreck, ALL_TARGETS),
        record("Blur", targets=ALL_TARGETS, card=Card("Blur", "", "", ("style", "object"), control=True)),
        record("Styles", half, missing=dict.fromkeys(ALL_TARGETS[3:], "does not support objects")),
        record("Pair", perfect, ("style:a+object:x",)),
    ]


@cache
def whole() -> Leaderboard:
    return made(*everything())

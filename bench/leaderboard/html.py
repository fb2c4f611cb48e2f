"""The leaderboard as one HTML file that opens from disk: tables, charts and pictures, nothing loaded from anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import pandas as pd

from bench.leaderboard.captions import under_attack
from bench.leaderboard.export import slug, table_json
from bench.leaderboard.notes import budget_of, tuned_values
from bench.leaderboard.table import Leaderboard
from bench.metrics.unlearning import NONE
from bench.types import Record

SCRIPTS = ("core.js", "charts.js", "inside.js", "gallery.js")


def to_html(
    leaderboard: Leaderboard, records: Sequence[Record], pictures: Mapping[str, Any], looks: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The page. `pictures` as the fields of `bench.gallery.Gallery`, `looks` as `bench.look` writes them."""
    base = next((record.label for record in records if record.method == NONE), NONE)
    data = {
        "protocol": leaderboard.protocol, "provenance": leaderboard.provenance, "invalid": leaderboard.invalid, "none": base,
        "footnotes": leaderboard.footnotes, "remarks": leaderboard.remarks,
        "tables": [table_json(leaderboard, table) for table in leaderboard.tables()],
        "targets": _rows(leaderboard.targets), "became": _rows(leaderboard.became), "attack_curves": _rows(leaderboard.attack_curves),
        "gallery": _told(pictures, records, base), "looks": list(looks),
        "published": [{**row, "attacked": under_attack(row)} for row in leaderboard.published],
        "cards": [_card(record) for record in sorted(records, key=lambda record: record.label)],
    }  # fmt: skip
    parts = files("bench.leaderboard").joinpath("page")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return Template(parts.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=f"Concept unlearning: {leaderboard.protocol}".replace("&", "&amp;").replace("<", "&lt;"),
        style=parts.joinpath("page.css").read_text(encoding="utf-8"),
        data=text.replace("<", "\\u003c"),  # a label must not end the script
        script="\n".join(parts.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


def _card(record: Record) -> dict[str, Any]:
    card, missing = record.card, dict[str, list[str]]()
    for target, reason in sorted(record.missing.items()):
        missing.setdefault(reason, []).append(target)
    tuned = "; ".join([budget_of(record), *tuned_values(record)])
    values = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(record.config.items()))
    arxiv = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", card.paper)
    link = f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else card.paper if card.paper.startswith("https://") else ""
    return {
        "label": record.label, "slug": slug(record.label), "title": card.title, "paper": card.paper, "link": link,
        "supports": card.supports, "version": str(record.version), "config": values, "tuning": tuned, "bibtex": card.bibtex.strip(),
        "missing": [(reason, ", ".join(targets)) for reason, targets in missing.items()],
    }  # fmt: skip


def _told(pictures: Mapping[str, Any], records: Sequence[Record], base: str) -> dict[str, Any]:
    """With the unedited model's own label, and whether a picture is far from every class."""
    far: set[tuple[Any, ...]] = set()
    for record in records if pictures["items"] else ():
        own = record.outcomes
        cells = zip(*(own[name] for name in ("target", "style", "object", "seed", "far")), strict=True) if "far" in own else ()
        far |= {(record.label, *cell) for *cell, broken in cells if broken}
    items = [{**item, "method": base} if item["target"] == "" else item for item in pictures["items"]]
    keys = [tuple(item[name] for name in ("method", "target", "style", "object", "seed")) for item in items]
    return {**pictures, "items": [{**item, "far": key in far} for item, key in zip(items, keys, strict=True)]}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON knows them, shares to 1e-4."""
    rounded = frame.round(4).astype(object)
    return list(rounded.where(rounded.notna(), None).to_dict("records"))

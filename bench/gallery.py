"""Pictures of runs as thumbnails for the report: the same requests across methods, as many as a size budget holds."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from bench.files import write_atomic
from bench.metrics.unlearning import NONE
from bench.store import Store
from bench.types import Target

BUDGET = 15_000_000
"""Bytes of the report that pictures may take."""
THUMB = 128
"""px; smaller pictures stay as they are."""
QUALITY = 75
FOLDER = "report_pictures"
_COLUMNS = ["request", "style", "object", "seed", "style_pred", "object_pred"]


@dataclass(frozen=True)
class Gallery:
    """Thumbnails and what they are of."""

    items: list[dict[str, Any]]
    """method (label), target ("" of the unedited model), style, object, seed, style_pred, object_pred (None: not judged), image (place)."""
    images: list[str]
    """WebP, base64, each once."""
    links: list[str]
    """Where the whole picture is, relative to the report; empty where the thumbnail is all of it."""
    note: str


NOTHING = Gallery([], [], [], "")


def gallery(stores: Sequence[Store], folder: Path) -> Gallery:
    """Of the pictures that runs have stored; whole ones that are larger than thumbnails are written below `folder`.

    The unedited model's picture stands beside every request. Where all are too many, each erasure has as many fewer, those that every
    method has first.
    """
    frames = [frame for store in stores for frame in _stored(store)]
    if not frames:
        return NOTHING
    every = pd.concat(frames, ignore_index=True).drop_duplicates(["method", "target", "request"])
    every = every[(every["target"] != "") | every["request"].isin(every.loc[every["target"] != "", "request"])]
    sample = every.iloc[:: max(1, len(every) // 40)]
    read = _Pictures()
    each = sum(len(_thumbnail(read(row))[0]) for row in sample.itertuples()) * 4 / 3 / max(1, len(sample))
    chosen = _evenly(every, BUDGET / max(1.0, each))
    images: dict[str, int] = {}
    data: list[str] = []
    links: list[str] = []
    items: list[dict[str, Any]] = []
    for row in chosen.itertuples():
        picture = read(row)
        name = hashlib.sha256(picture).hexdigest()
        if name not in images:
            images[name] = len(data)
            thumbnail, kind = _thumbnail(picture)
            data.append(base64.b64encode(thumbnail).decode())
            links.append(f"{FOLDER}/{name[:16]}.{kind}" if kind else "")
            if kind:
                write_atomic(folder / links[-1], picture, replace=False)
        items.append({
            "method": row.method, "target": row.target, "style": row.style, "object": row.object, "seed": int(row.seed),
            "style_pred": _or_none(row.style_pred), "object_pred": _or_none(row.object_pred), "image": images[name],
        })  # fmt: skip
    left = len(every) - len(chosen)
    note = (
        "The same request, hence the same initial noise, in every row; red: the erased concept is still there, or another was lost; dashed:"
        " gone, but the picture is far from every class."
    )
    return Gallery(items, data, links, f"{note} {left} more pictures are in the run's folder." if left else note)


def _stored(store: Store) -> Iterator[pd.DataFrame]:
    """What pictures there are, without their bytes, of every unit of a run."""
    for entry in (store.read_json("plan.json", ["units"]) or {"units": []})["units"]:
        if "attack" in entry:
            continue
        frame = store.read_unit(entry["unit"], [*_COLUMNS, "picture"])
        if frame is not None:
            there = frame.loc[frame["picture"].notna(), _COLUMNS]
            label = NONE if entry["target"] == "" else entry["method"]
            yield there.assign(method=label, target=entry["target"], unit=entry["unit"], store=store)


def _evenly(every: pd.DataFrame, most: float) -> pd.DataFrame:
    """At most so many: of every target those that show it and those that do not in turn, requests of most methods first."""
    base, edited = every[every["target"] == ""], every[every["target"] != ""]
    counts = edited.groupby(["target", "request"])["method"].transform("size")
    shows = [
        Target.parse(target).involves(*cell) for target, *cell in zip(edited["target"], edited["style"], edited["object"], strict=True)
    ]
    ordered = edited.assign(shows=shows, count=counts).sort_values(
        ["target", "count", "request"], ascending=[True, False, True], kind="stable"
    )
    first = ordered.drop_duplicates(["target", "request"])
    turn = first.assign(turn=first.groupby(["target", "shows"]).cumcount())[["target", "request", "turn"]]
    ordered = ordered.merge(turn, on=["target", "request"])
    sizes = ordered.groupby("turn").size().sort_index().cumsum()
    kept = int((sizes + len(base) <= most).sum())
    chosen = ordered[ordered["turn"] < max(1, kept)]
    needed = base[base["request"].isin(chosen["request"])]
    return pd.concat([needed, chosen]).sort_values(["target", "method", "unit", "request"], kind="stable")  # each unit is read once


class _Pictures:
    """Reads pictures unit by unit."""

    def __init__(self) -> None:
        self.key: tuple[str, str] = "", ""
        self.own = pd.Series(dtype=object)

    def __call__(self, row: Any) -> bytes:
        """The file of one."""
        key = str(row.store.folder), row.unit
        if key != self.key:
            frame = row.store.read_unit(row.unit, ["request", "picture"])
            self.key, self.own = key, frame.drop_duplicates("request").set_index("request")["picture"]
        found: bytes = self.own[row.request]
        return found


def _thumbnail(picture: bytes) -> tuple[bytes, str]:
    """WebP of at most `THUMB` px, and the kind of the picture's own file if that is larger, else ""."""
    image = Image.open(io.BytesIO(picture))
    larger = max(image.size) > THUMB
    kind = (image.format or "png").lower() if larger else ""
    small = image.convert("RGB")
    small.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=QUALITY, method=4)
    return buffer.getvalue(), kind


def _or_none(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)

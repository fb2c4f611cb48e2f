"""One picture per run: the same requests across methods, what each target became and what stayed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from bench.files import write_atomic
from bench.store import Store
from bench.types import Target

OWN, OTHER, TARGETS, THUMB, MARGIN = 4, 2, 6, 128, 4
_HEAD, _SIDE = 40, 170


def draw_grid(store: Store, folder: Path) -> None:
    """Write `grid.png` into a folder: a block per target, a row per method, columns of pictures that involve it, then some that do not.

    At most `TARGETS` targets, evenly spaced, are drawn, with pictures that every method has stored; without any, there is no file.
    """
    (folder / "grid.png").unlink(missing_ok=True)
    units: dict[str, dict[str, list[str]]] = {}
    holes = {(record.label, target) for record in store.records() for target in record.missing}
    for entry in (store.read_json("plan.json", ["units"]) or {"units": []})["units"]:
        if (entry["method"], entry["target"]) in holes or "attack" in entry:
            continue
        units.setdefault(entry["target"], {}).setdefault(entry["method"], []).append(entry["unit"])
    base = _stored(store, units.pop("", {}).get("none", []))
    every = list(units)
    targets = [every[k * len(every) // TARGETS] for k in range(TARGETS)] if len(every) > TARGETS else every
    if base.empty or not targets:
        return
    blocks = []
    for target in targets:
        rows = {"none": base, **{label: stored for label, own in units[target].items() if not (stored := _stored(store, own)).empty}}
        blocks.append(_block(store, Target.parse(target), rows))
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    buffer = io.BytesIO()
    sheet.save(buffer, "png", optimize=True)
    write_atomic(folder / "grid.png", buffer.getvalue())


def _stored(store: Store, units: Sequence[str]) -> pd.DataFrame:
    """Which pictures there are, by request: style, object and the unit that holds it. Not their bytes, of which there may be many."""
    frames = [pd.DataFrame(columns=["request", "style", "object", "unit"])]
    for unit in units:
        frame = store.read_unit(unit, ["request", "style", "object", "picture"])
        if frame is not None:
            frames.append(frame.loc[frame["picture"].notna(), ["request", "style", "object"]].assign(unit=unit))
    return pd.concat(frames).drop_duplicates("request").set_index("request")


def _block(store: Store, target: Target, rows: Mapping[str, pd.DataFrame]) -> Image.Image:
    base = rows["none"]
    common = [i for i in base.index if all(i in frame.index for frame in rows.values())]
    involved = [i for i in common if target.involves(base.at[i, "style"], base.at[i, "object"])][:OWN]
    others = [i for i in common if not target.involves(base.at[i, "style"], base.at[i, "object"])][:OTHER]
    columns = [*involved, *others]
    step = THUMB + MARGIN
    block = Image.new("RGB", (_SIDE + step * len(columns), _HEAD + step * len(rows) + MARGIN), "white")
    pen, font = ImageDraw.Draw(block), ImageFont.load_default(13)
    pen.text((4, 4), f"erased: {target}", fill="black", font=font)
    for column, request in enumerate(columns):
        caption = f"{base.at[request, 'style']} {base.at[request, 'object']}"
        pen.text(
            (_SIDE + column * step, 24), caption, fill="firebrick" if request in involved else "dimgray", font=ImageFont.load_default(10)
        )
    for line, (label, frame) in enumerate(rows.items()):
        pen.text((4, _HEAD + line * step + THUMB // 2 - 8), _broken(label), fill="black", font=font)
        _paste(block, store, frame, columns, _HEAD + line * step, step)
    return block


def _broken(label: str) -> str:
    """A long label over several lines."""
    return label.replace(" (", "\n(").replace(":", "\n")


def _paste(block: Image.Image, store: Store, stored: pd.DataFrame, columns: Sequence[Any], top: int, step: int) -> None:
    units = {unit: store.read_unit(unit, ["request", "picture"]) for unit in set(stored.loc[columns, "unit"])}
    pictures = {unit: frame.drop_duplicates("request").set_index("request") for unit, frame in units.items() if frame is not None}
    for column, request in enumerate(columns):
        frame = pictures.get(stored.at[request, "unit"])
        if frame is not None:
            picture = Image.open(io.BytesIO(frame.at[request, "picture"])).resize((THUMB, THUMB), Image.Resampling.NEAREST)
            block.paste(picture, (_SIDE + column * step, top))

"""One picture of what attacks brought back: a row per method and attack, its successes with the prompts that did it."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from bench.files import write_atomic
from bench.grid import MARGIN, THUMB
from bench.store import Store

SHOWN, SIDE, CAPTION, LINES = 5, 200, 58, 4
"""Successes of a row at most; pixels and lines of text."""


def draw_attacks(store: Store, folder: Path) -> None:
    """Write `attacks.png` into a folder: successes of attacks whose pictures are stored; without any, there is no file."""
    (folder / "attacks.png").unlink(missing_ok=True)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in (store.read_json("plan.json", ["units"]) or {"units": []})["units"]:
        if "attack" not in entry:
            continue
        frame = store.read_unit(entry["unit"], ["clean", "success", "prompt", "picture"])
        own = rows.setdefault((entry["method"], entry["attack"]), [])
        if frame is not None:
            found = frame[frame["success"].eq(True) & ~frame["clean"] & frame["picture"].notna()]
            own += [{"target": entry["target"], **row} for row in found.to_dict("records")]
    rows = {key: own for key, own in rows.items() if own}
    if not rows:
        return
    width, height = THUMB + MARGIN, THUMB + CAPTION + MARGIN
    sheet = Image.new("RGB", (SIDE + SHOWN * width, len(rows) * height + MARGIN), "white")
    pen, small = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for line, ((method, attack), own) in enumerate(rows.items()):
        top = MARGIN + line * height
        title = "\n".join([*textwrap.wrap(method, 26), *textwrap.wrap(attack, 26), f"{len(own)} successes"])
        pen.text((4, top + 30), title, fill="black", font=ImageFont.load_default(13))
        for column, row in enumerate(own[k * len(own) // min(SHOWN, len(own))] for k in range(min(SHOWN, len(own)))):
            left = SIDE + column * width
            picture = Image.open(io.BytesIO(row["picture"])).resize((THUMB, THUMB), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top))
            words = textwrap.wrap(f"{row['target']}: {row['prompt']}", 24)[:LINES]
            pen.text((left, top + THUMB + 2), "\n".join(words), fill="dimgray", font=small)
    buffer = io.BytesIO()
    sheet.quantize(256).save(buffer, "png", optimize=True)
    write_atomic(folder / "attacks.png", buffer.getvalue())

"""The true pictures of UnlearnCanvas, from either published form, as the reference of distances."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.codec import decode
from bench.errors import BenchError
from bench.suites.unlearncanvas.vocabulary import OBJECTS, SEED_IMAGES, THEMES, UNUSED

IN_A_CELL, PER_CELL = 20, 5
"""The published FID takes pictures 1.jpg to 5.jpg of every theme and object."""
AT_ONCE = 64
Cell = tuple[str, str]


def true_pictures(folder: Path, themes: Sequence[str]) -> Iterator[tuple[list[Cell], Any]]:
    """(theme, object) cells and uint8 [n, H, W, 3] of at most 64 pictures of one size at a time. BenchError for what is missing.

    The Hub's Parquet files have lost the numbers of the pictures: of those, the first five of a cell are taken.
    """
    cells = [(theme, obj) for theme in themes for obj in OBJECTS]
    parquet = sorted(folder.rglob("*.parquet"))
    held: dict[tuple[int, ...], list[tuple[Cell, np.ndarray[Any, Any]]]] = {}
    for cell, picture in _from_parquet(parquet, cells) if parquet else _from_folders(folder, cells):
        own = held.setdefault(picture.shape, [])
        own.append((cell, picture))
        if len(own) == AT_ONCE:
            yield _batch(held.pop(picture.shape))
    for own in held.values():
        yield _batch(own)


def example_pictures(folder: Path, wanted: Sequence[tuple[str, str, int]], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """uint8 [n, *size, 3] of (theme, object, k-th picture), from those that distances do not use. BenchError for what is missing."""
    found = []
    for theme, obj, k in wanted:
        path = folder / theme / obj / f"{PER_CELL + 1 + (k - 1) % (IN_A_CELL - PER_CELL)}.jpg"
        try:
            own = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
            found.append(np.asarray(own.resize(size[::-1], Image.Resampling.LANCZOS)))
        except OSError as error:
            raise BenchError(f"{path} cannot be read ({error}): methods train on it; fetch the images again.") from error
    return np.stack(found)


def _batch(own: list[tuple[Cell, np.ndarray[Any, Any]]]) -> tuple[list[Cell], Any]:
    return [cell for cell, _ in own], np.stack([picture for _, picture in own])


def _from_folders(folder: Path, cells: Iterable[Cell]) -> Iterator[tuple[Cell, np.ndarray[Any, Any]]]:
    for theme, obj in cells:
        for number in range(1, PER_CELL + 1):
            path = folder / theme / obj / f"{number}.jpg"
            try:
                yield (theme, obj), decode(path.read_bytes())
            except OSError as error:
                raise BenchError(f"{path} cannot be read ({error}): distances need it; fetch the images again.") from error


def _from_parquet(files: Sequence[Path], cells: Sequence[Cell]) -> Iterator[tuple[Cell, np.ndarray[Any, Any]]]:
    """By caption: a picture is of the theme and the object whose names its text has."""
    names = {_plain(theme): "" for theme in (*THEMES, *UNUSED)}  # "realistic watercolor" is no "watercolor"
    names |= {_plain("photo" if theme == SEED_IMAGES else theme): theme for theme, _ in cells}
    themes = sorted(names, key=len, reverse=True)  # "artist sketch" before "sketch"
    counts = dict.fromkeys(cells, 0)
    for file in files:
        try:
            for batch in pq.ParquetFile(file).iter_batches(AT_ONCE, columns=["image", "text"]):
                for row in batch.to_pylist():
                    cell = _cell(_plain(row["text"]), themes, names)
                    if cell in counts and counts[cell] < PER_CELL:
                        counts[cell] += 1
                        yield cell, decode(row["image"]["bytes"])
        except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError) as error:
            raise BenchError(f"{file} cannot be read ({error}): distances need it; fetch the images again.") from error
        if min(counts.values()) == PER_CELL:
            return
    lacking = next(cell for cell in cells if counts[cell] < PER_CELL)
    raise BenchError(f"The Parquet files have {counts[lacking]} pictures of {'/'.join(lacking)}, {PER_CELL} are needed: fetch all of them.")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("_", " ")))


def _cell(text: str, themes: Sequence[str], names: dict[str, str]) -> Cell:
    """The theme before the word "style", and the first object that is named; "" for none."""
    before = text.rpartition(" style")[0]
    theme = next((name for name in themes if before.endswith(f" {name}") or before == name), "")
    obj = next((obj for obj in OBJECTS if re.search(rf"\b{_plain(obj)}\b", text)), "")
    return names.get(theme, ""), obj

"""What happens to pictures between the sampler and the judges, and the bytes in which they are kept."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

Codec = Literal["none", "jpeg"]
"""jpeg: as by Pillow with its default quality (75) and subsampling; judges see what is left, as where scripts save files first."""
Pixels = np.ndarray[Any, Any]
T = TypeVar("T")
THREADS = 16
"""At most: workers of other devices have their own."""


def encode(pixels: Pixels, codec: Codec) -> bytes:
    """One picture uint8 [H, W, 3] as a JPEG file, or without a codec as a lossless PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg" if codec == "jpeg" else "png")
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    """The picture uint8 [H, W, 3] in a file's bytes. Raises OSError for what is none."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def in_threads(work: Callable[..., T], *items: Iterable[Any]) -> list[T]:
    """`work` on each: files and Pillow do theirs without the interpreter's lock."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, *items))


def through(pixels: Pixels, codec: Codec, keep: list[bool]) -> tuple[Pixels, list[bytes | None]]:
    """uint8 [n, H, W, 3] → what judges see of it, and the files' bytes of those in `keep`."""
    files = in_threads(lambda own, kept: encode(own, codec) if kept or codec != "none" else None, pixels, keep)
    seen = pixels if codec == "none" else np.stack(in_threads(decode, files))
    return seen, [data if kept else None for data, kept in zip(files, keep, strict=True)]

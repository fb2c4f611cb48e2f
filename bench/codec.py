"""What happens to pictures between the sampler and the judges, and the bytes in which they are kept."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from PIL import Image

Codec = Literal["none", "jpeg"]
"""jpeg: as by Pillow with its default quality (75) and subsampling; judges see what is left, as where scripts save files first."""
Pixels = np.ndarray[Any, Any]


def encode(pixels: Pixels, codec: Codec) -> bytes:
    """One picture uint8 [H, W, 3] as a JPEG file, or without a codec as a lossless PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg" if codec == "jpeg" else "png")
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    """The picture uint8 [H, W, 3] in a file's bytes. Raises OSError for what is none."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def through(pixels: Pixels, codec: Codec, keep: list[bool]) -> tuple[Pixels, list[bytes | None]]:
    """uint8 [n, H, W, 3] → what judges see of it, and the files' bytes of those in `keep`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow works without the interpreter's lock
        if codec == "none":
            files: list[bytes | None] = list(pool.map(lambda own, kept: encode(own, codec) if kept else None, pixels, keep))
            return pixels, files
        whole = list(pool.map(lambda own: encode(own, codec), pixels))
        return np.stack(list(pool.map(decode, whole))), [data if kept else None for data, kept in zip(whole, keep, strict=True)]

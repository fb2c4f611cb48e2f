"""The training pictures and captions of minicanvas, rendered once and kept in the build folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.suites.minicanvas.captions import training_caption, training_cells
from bench.suites.minicanvas.render import NO_OBJECT, OBJECTS, STYLES, render_many

CAPTIONS_PER_PICTURE = 8


@dataclass(frozen=True)
class Pictures:
    """`pixels` uint8 [n, 64, 64, 3]; `style`, `object` int64 [n] (the last object class is "no object"); their cells."""

    pixels: Tensor
    style: Tensor
    object: Tensor
    cells: list[tuple[str, str, int]]

    def captions(self, seed: int) -> list[str]:
        """`CAPTIONS_PER_PICTURE` random captions a picture, picture by picture."""
        rng = np.random.default_rng([seed, 1])
        return [training_caption(s, o, rng) for s, o, _ in self.cells for _ in range(CAPTIONS_PER_PICTURE)]


def pictures(count: int, seed: int, empty: float, folder: Path | None = None) -> Pictures:
    """Render `count` pictures (or read them back from `folder`); a share `empty` of them shows no object."""
    cells = training_cells(count, seed, empty)
    names = (*OBJECTS, NO_OBJECT)
    cached = folder / f"pictures-{seed}-{count}.npy" if folder else None
    if cached and cached.exists():
        pixels = np.load(cached, allow_pickle=False)
    else:
        pixels = render_many(cells, processes=os.cpu_count() or 1)
        if cached:
            temporary = cached.with_suffix(".tmp.npy")
            np.save(temporary, pixels)
            os.replace(temporary, cached)
    style = torch.tensor([STYLES.index(s) for s, _, _ in cells])
    obj = torch.tensor([names.index(o) for _, o, _ in cells])
    return Pictures(torch.from_numpy(pixels), style, obj, cells)

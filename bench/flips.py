"""How often a judge sees something else when the same requests are sampled with other numerics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast, get_args

import pandas as pd
import torch
from torch import Tensor

from bench.config import DTypeName, parse_variant
from bench.diffusion.loading import load_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.numerics import pick_dtype
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError, unknown
from bench.interfaces import Classifier, Erasure
from bench.metrics.uncertainty import wilson
from bench.scoring import judge_all, load_judge
from bench.suites.suite import Suite
from bench.types import Target


@dataclass(frozen=True)
class Setting:
    """`bfloat16`, `float32:compile=yes`, `bfloat16:batch_size=8`."""

    dtype: DTypeName
    batch_size: int = 16
    compiled: bool = False

    @classmethod
    def parse(cls, text: str) -> Setting:
        """BenchError for what is none."""
        dtype, rest = parse_variant(text)
        names = [name for name in get_args(DTypeName) if name != "auto"]
        if dtype not in names:
            raise unknown("dtype", dtype, names)
        for key in rest:
            if key not in ("batch_size", "compile"):
                raise unknown("setting", key, ["batch_size", "compile"])
        size, choice = rest.get("batch_size", "16"), rest.get("compile", "no")
        if not size.isdecimal() or not 1 <= int(size) <= 4_096:
            raise BenchError(f'batch_size={size} in "{text}" is no number of pictures: give 1 to 4096.')
        if choice not in ("yes", "no"):
            raise BenchError(f'compile={choice} in "{text}" is neither yes nor no.')
        return cls(cast(DTypeName, dtype), int(size), choice == "yes")

    def sampler(self, model: DiffusionModel) -> Sampler:
        """What samples so."""
        return Sampler(model, pick_dtype(self.dtype, model, 2 * self.batch_size), 2 * self.batch_size, self.compiled)


def label_flips(
    suite: Suite, first: Setting, second: Setting, pictures: int, steps: int, device: torch.device, advance: Callable[[int], None]
) -> pd.DataFrame:
    """Per kind: pictures of the un-edited model whose verdict differs, their share with Wilson's 95 % interval; and how far pixels are.

    Columns: kind, flips, n, share, low, high, pixels_mean and pixels_max (absolute differences, of 255).
    """
    model, judge = load_model(suite.model_folder(), device), load_judge(suite, "evaluation", device)
    cell = Target((suite.concepts[0],))
    seeds = -(-pictures // (len(suite.styles) * len(suite.objects)))
    preset = replace(suite.presets["full"], seeds=seeds, steps=steps)
    rows = [Row(request, Erasure()) for request in suite.requests(cell, preset)[:pictures]]
    pixels = []
    for setting in (first, second):
        sampled = setting.sampler(model).all(rows, advance)
        if sampled.broken:
            raise BenchError(f"With {setting} {len(sampled.broken)} of {len(rows)} latents are not finite: there is nothing to compare.")
        pixels.append(model.decode(sampled.latents))
    ours, theirs = (_labels(judge, own, device) for own in pixels)
    gap = (pixels[0].float() - pixels[1].float()).abs()
    found = []
    for kind, mine, other in zip(("style", "object"), ours, theirs, strict=True):
        flips = int((mine != other).sum())
        low, high = wilson(flips, len(rows)) or (0.0, 1.0)
        about = {"pixels_mean": float(gap.mean()), "pixels_max": float(gap.max())}
        found.append({"kind": kind, "flips": flips, "n": len(rows), "share": flips / len(rows), "low": low, "high": high, **about})
    return pd.DataFrame(found)


def _labels(judge: Classifier, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    seen = judge_all(judge, pixels)
    return seen.style.argmax(1), seen.object.argmax(1)

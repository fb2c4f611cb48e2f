"""Which block of the UNet decides which kind of concept: feed one block the text of another concept, see what changes.

All other blocks read the prompt of the picture, the noise is the same. Where the picture then shows another style (or
object), that block decides it. An SAE at a block that does not decide a concept detects it perfectly and cannot remove it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from bench.diffusion.model import DiffusionModel, attention_blocks
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.diffusion.text import PlainText
from bench.interfaces import Classifier, Cond, Erasure, Role, TextEdit
from bench.metrics.uncertainty import wilson
from bench.scoring import judge_all
from bench.suites.suite import Suite
from bench.types import KINDS, GenerationRequest, Kind


@dataclass(frozen=True, eq=False)
class _TwoTexts(TextEdit):
    """Each prompt's states with those of another prompt behind them, [1, 2L, D]: every block takes its half."""

    other: dict[str, str]

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        own = PlainText().encode(model, texts, role, steps)
        other = PlainText().encode(model, [self.other.get(text, text) for text in texts], role, steps)
        return [replace(a, embeds=torch.cat([a.embeds, b.embeds], 1)) for a, b in zip(own, other, strict=True)]


@contextmanager
def _fed(unet: nn.Module, swapped: set[str], length: int) -> Iterator[None]:
    """Blocks in `swapped` read the second half of the text states, the others the first."""
    modules = dict(unet.named_modules())

    def hook(name: str) -> Callable[..., Any]:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            states = kwargs["encoder_hidden_states"]
            half = states[:, length:] if name in swapped else states[:, :length]
            return args, {**kwargs, "encoder_hidden_states": half}

        return take

    handles = [modules[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in attention_blocks(unet)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def locate(
    suite: Suite,
    model: DiffusionModel,
    judge: Classifier,
    dtype: torch.dtype,
    slots: int,
    pictures: int,
    steps: int,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """One row per set of swapped blocks and kind: the share of verdicts of that kind that stay, with Wilson's 95 % interval.

    `pictures` are spread over the grid; each is asked for another style (then another object) in the swapped blocks. Sets:
    no block, every single block, all blocks of a stage, all down and mid, all up, every block.
    """
    requests = suite.split_requests("locate", pictures, steps)
    unet = model.sampling_unet(dtype)
    blocks = attention_blocks(unet)
    found = []
    for kind in KINDS:
        erasure = Erasure(text=_TwoTexts({r.prompt: _other_prompt(suite, r, kind) for r in requests}))
        wanted = [getattr(request, kind) for request in requests]
        for name, swapped in _sets(blocks).items():
            say(f"{kind}: other text in {name}")
            with _fed(unet, swapped, model.max_tokens):
                latents = sample(model, [Row(request, erasure) for request in requests], dtype, slots).latents
            names, logits = (judge.styles, 0) if kind == "style" else (judge.objects, 1)
            verdicts = judge_all(judge, model.decode(latents))[logits].argmax(1).tolist()
            stay = sum(names[v] == w for v, w in zip(verdicts, wanted, strict=True))
            low, high = wilson(stay, len(requests)) or (0.0, 1.0)
            found.append({"kind": kind, "blocks": name, "stays": stay / len(requests), "low": low, "high": high, "n": len(requests)})
    return pd.DataFrame(found)


def _sets(blocks: Sequence[str]) -> dict[str, set[str]]:
    """Named sets of blocks to swap: none, each one, each stage of several, the whole."""
    sets: dict[str, set[str]] = {"none": set(), **{name: {name} for name in blocks}}
    stages: dict[str, set[str]] = {}
    for name in blocks:
        stages.setdefault(name.partition(".attentions")[0], set()).add(name)
    sets |= {stage: members for stage, members in stages.items() if len(members) > 1}
    down = {name for name in blocks if not name.startswith("up_blocks")}
    return {**sets, "all down and mid": down, "all up": set(blocks) - down, "all": set(blocks)}


def _other_prompt(suite: Suite, request: GenerationRequest, kind: Kind) -> str:
    """The prompt with the concept of this kind replaced by one far along the suite's list."""
    names = suite.styles if kind == "style" else suite.objects
    other = names[(names.index(getattr(request, kind)) + len(names) // 2) % len(names)]
    return suite.prompt(other, request.object) if kind == "style" else suite.prompt(request.style, other)


def heat_map(table: pd.DataFrame, cell: int = 84, row: int = 26) -> Image.Image:
    """A picture of the table: sets of blocks down, kinds across; the darker, the more verdicts change."""
    names = list(dict.fromkeys(table["blocks"]))
    font = ImageFont.load_default(14)
    left = 12 + max(int(font.getlength(name)) for name in names)
    image = Image.new("RGB", (left + cell * len(KINDS) + 12, row * (len(names) + 1) + 12), "white")
    draw = ImageDraw.Draw(image)
    for x, kind in enumerate(KINDS):
        draw.text((left + cell * (x + 0.5), row / 2), f"{kind} stays", "black", font, anchor="mm")
    for y, name in enumerate(names, start=1):
        draw.text((left - 8, row * (y + 0.5)), name, "black", font, anchor="rm")
        for x, kind in enumerate(KINDS):
            share = float(table.loc[(table["blocks"] == name) & (table["kind"] == kind), "stays"].iloc[0])
            colour = tuple(round(v) for v in share * np.array([247, 251, 255]) + (1 - share) * np.array([8, 48, 107]))
            draw.rectangle((left + cell * x, row * y, left + cell * (x + 1) - 2, row * (y + 1) - 2), colour)
            text = "black" if share > 0.5 else "white"
            draw.text((left + cell * (x + 0.5), row * (y + 0.5)), f"{share:.2f}", text, font, anchor="mm")
    return image


def hookpoints(table: pd.DataFrame) -> dict[Kind, str]:
    """Per kind, the single block whose text decides it most."""
    single = table[table["blocks"].str.contains(".attentions.", regex=False)]
    return {kind: str(single.loc[single.loc[single["kind"] == kind, "stays"].idxmin(), "blocks"]) for kind in KINDS}

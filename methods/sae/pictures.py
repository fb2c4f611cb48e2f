"""A look inside: which latents stand for a concept, which patches the edits change at each step, and what becomes of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.api import ActivationEdit, DiffusionModel, EditBank, Erasure, GenerationRequest, Row, Slots, sample
from methods.sae.bank import LatentBank, LatentEdit

TILE, GAP, LEFT, TOP, CELL = 96, 6, 150, 40, 22


@dataclass(frozen=True, eq=False, kw_only=True)
class Watched(ActivationEdit):
    """An edit, and at each hook point a bool [S, h, w] per call: the tokens that it changed."""

    inner: LatentEdit
    hookpoints: tuple[str, ...]
    timesteps: Tensor
    changed: dict[str, list[Tensor]]

    @classmethod
    def of(cls, inner: LatentEdit) -> Watched:
        """Nothing seen yet."""
        changed: dict[str, list[Tensor]] = {name: [] for name in inner.hookpoints}
        return cls(inner=inner, hookpoints=inner.hookpoints, timesteps=inner.timesteps, changed=changed)

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> EditBank:
        """See `ActivationEdit.stack`; one edit is watched at a time."""
        (one,) = edits
        assert isinstance(one, Watched)
        return _WatchedBank(type(one.inner).stack([one.inner]), one.changed)

    def masks(self, hookpoint: str, rows: int, slots: int) -> Tensor:
        """Bool [T, rows, 2, h, w], halves of guidance unconditional first, after `rows` were sampled in calls of `slots`."""
        calls, batch = self.changed[hookpoint], slots // 2
        batches = -(-rows // batch)
        steps = len(calls) // batches
        halves = [torch.cat([calls[b * steps + t][: 2 * batch] for b in range(batches)])[: 2 * rows] for t in range(steps)]
        return torch.stack(halves).unflatten(1, (rows, 2)).cpu()


class _WatchedBank(EditBank):
    def __init__(self, inner: LatentBank, changed: dict[str, list[Tensor]]) -> None:
        super().__init__()
        self.inner, self.changed = inner, changed

    def state(self, rows: int) -> dict[str, Tensor]:
        """See `EditBank.state`."""
        return self.inner.state(rows)

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        """See `EditBank.edit`."""
        new = self.inner.edit(hookpoint, x_in, x_out, slots, state)
        self.changed[hookpoint].append((new != x_out).any(1))
        return new


def look_inside(
    model: DiffusionModel, erasures: Mapping[str, Erasure], requests: Sequence[GenerationRequest], dtype: torch.dtype, slots: int,
    shown: int = 5,
) -> Image.Image:  # fmt: skip
    """One row per request and hook point: the un-edited picture; for each erasure what it changed at some steps, and its picture.

    A changed patch is red in the conditional half of guidance, blue in the unconditional one, violet in both. Erasures have one
    activation edit each, all at the same hook points.
    """
    base = model.decode(sample(model, [Row(r, Erasure()) for r in requests], dtype, slots).latents).numpy()
    masks: dict[str, dict[str, Tensor]] = {}
    results: dict[str, np.ndarray] = {}
    for name, erasure in erasures.items():
        (edit,) = erasure.activations
        assert isinstance(edit, LatentEdit)
        watched = Watched.of(edit)
        rows = [Row(request, replace(erasure, activations=(watched,))) for request in requests]
        results[name] = model.decode(sample(model, rows, dtype, slots).latents).numpy()
        masks[name] = {hookpoint: watched.masks(hookpoint, len(requests), slots) for hookpoint in edit.hookpoints}
    hookpoints = list(next(iter(masks.values())))
    steps = np.linspace(0, requests[0].steps - 1, shown).round().astype(int).tolist()
    titles = ["un-edited", *(title for name in erasures for title in (*(f"{name}\nstep {step + 1}" for step in steps), f"{name}\nresult"))]
    canvas = Image.new("RGB", (LEFT + (TILE + GAP) * len(titles), TOP + (TILE + GAP) * len(requests) * len(hookpoints)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for x, title in enumerate(titles):
        draw.multiline_text((LEFT + x * (TILE + GAP) + TILE / 2, TOP / 2), title, "black", font, anchor="mm", align="center")
    for r, request in enumerate(requests):
        for p, hookpoint in enumerate(hookpoints):
            y = TOP + (r * len(hookpoints) + p) * (TILE + GAP)
            draw.multiline_text((4, y + TILE / 2), f"{request.style}\n{request.object}\n{_short(hookpoint)}", "black", font, anchor="lm")
            tiles = [base[r]]
            for name, own in results.items():
                tiles += [*(_overlay(base[r], masks[name][hookpoint][step, r]) for step in steps), own[r]]
            for x, tile in enumerate(tiles):
                canvas.paste(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC), (LEFT + x * (TILE + GAP), y))
    return canvas


def latents_chart(edit: LatentEdit, strengths: Tensor) -> Image.Image:
    """Which latents stand for the concept at each step: a row per latent and hook point, a column per step.

    The darker, the stronger; `strengths` [H, T, F] belong to `edit.latents`. White: not chosen at that step.
    """
    charts = list(strengths_by_latent(edit, strengths).values())
    steps, count = len(edit.timesteps), sum(len(rows) for rows in charts)
    canvas = Image.new("RGB", (LEFT + CELL * steps + GAP, TOP + CELL * (count + len(charts))), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for step in range(steps):
        draw.text((LEFT + (step + 0.5) * CELL, TOP / 2), str(step + 1), "black", font, anchor="mm")
    draw.text((4, TOP / 2), "step", "black", font, anchor="lm")
    y = TOP
    for hookpoint, rows in zip(edit.hookpoints, charts, strict=True):
        draw.text((4, y + CELL / 2), _short(hookpoint), "black", font, anchor="lm")
        y += CELL
        for latent, values in rows.items():
            draw.text((LEFT - 8, y + CELL / 2), f"latent {latent}", "black", font, anchor="rm")
            for step, value in enumerate(values):
                left = LEFT + step * CELL
                shade = round(225 * (1 - value))
                colour = (shade, shade, 255) if value > 0 else (255, 255, 255)
                draw.rectangle((left, y, left + CELL - 1, y + CELL - 1), colour, "lightgrey")
            y += CELL
    return canvas


def strengths_by_latent(edit: LatentEdit, strengths: Tensor | None = None) -> dict[str, dict[int, list[float]]]:
    """Hook point → latent → strength in (0, 1] at every step, 0 where it is not chosen, by the step of its first choice.

    `strengths` [H, T, F] of `edit.latents`; without them, all are 1.
    """
    values = torch.ones_like(edit.thresholds) if strengths is None else strengths
    every: dict[str, dict[int, list[float]]] = {}
    for h, hookpoint in enumerate(edit.hookpoints):
        chosen, found = edit.thresholds[h].isfinite(), dict[int, list[float]]()
        largest = float(values[h][chosen].max()) if chosen.any() else 1.0
        for step, f in chosen.nonzero().tolist():
            row = found.setdefault(int(edit.latents[h, step, f]), [0.0] * len(chosen))
            row[step] = max(0.05, float(values[h, step, f]) / largest)
        every[hookpoint] = found
    return every


def _short(hookpoint: str) -> str:
    return hookpoint.replace("_blocks", "").replace("_block", "").replace("attentions", "attn")


def _overlay(picture: np.ndarray, mask: Tensor) -> np.ndarray:
    """The picture, greyed, with changed patches coloured; mask bool [2, h, w]."""
    size = picture.shape[:2]
    halves = [
        np.asarray(Image.fromarray(half.numpy().astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.NEAREST)) for half in mask
    ]
    grey = 0.5 * picture.mean(2, keepdims=True) + 110
    colour = np.stack([halves[1], np.zeros(size), halves[0]], 2).astype(np.float32)
    seen = (halves[0] | halves[1])[..., None] > 0
    mixed: np.ndarray = np.where(seen, 0.45 * grey + 0.55 * colour, grey).clip(0, 255).astype(np.uint8)
    return mixed

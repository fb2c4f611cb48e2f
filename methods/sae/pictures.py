"""A look inside: which patches a concept's latents see at each step, and what the edits make of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.api import DiffusionModel, Erasure, GenerationRequest, Probe, Row, sample
from methods.sae.edits import LatentBank, LatentEdit

TILE, GAP, LEFT = 96, 6, 150


class DetectionRecorder(Probe):
    """The masks of one edit on the trajectories it watches, per step and half of guidance."""

    def __init__(self, bank: LatentBank, hookpoint: str, timesteps: Sequence[int], rows: int) -> None:
        self.hookpoints, self.bank, self.timesteps = (hookpoint,), bank, timesteps
        self.rows = rows
        self.found: list[Tensor] = []

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`; one full batch is enough for a picture."""
        t = torch.full((len(row),), self.timesteps[step], device=row.device)
        seen = self.bank.detected(hookpoint, x_out, t, torch.zeros_like(row))
        if len(self.found) <= step:
            self.found.append(torch.zeros(self.rows, 2, *seen.shape[1:], dtype=torch.bool))
        kept = (row >= 0) & (role < 2)
        self.found[step][row[kept].cpu(), role[kept].cpu()] = seen[kept].cpu()

    @property
    def masks(self) -> Tensor:
        """Bool [T, R, 2, h, w]."""
        return torch.stack(self.found)


def look_inside(
    model: DiffusionModel, edit: LatentEdit, erasures: Mapping[str, Erasure], requests: Sequence[GenerationRequest],
    timesteps: Sequence[int], dtype: torch.dtype, slots: int, shown: int = 5,
) -> Image.Image:  # fmt: skip
    """One row per request: the un-edited picture, the patches detected on its way at some steps, the picture under each erasure.

    A detected patch is red in the conditional half of guidance, blue in the unconditional one, violet in both. With several
    hook points there is one such row for each.
    """
    bank = type(edit).stack([edit]).to(model.device)
    probes = [DetectionRecorder(bank, name, timesteps, len(requests)) for name in edit.hookpoints]
    base = model.decode(sample(model, [Row(r, Erasure()) for r in requests], dtype, slots, probes=probes).latents).numpy()
    results = {
        name: model.decode(sample(model, [Row(r, erasure) for r in requests], dtype, slots).latents).numpy()
        for name, erasure in erasures.items()
    }
    steps = np.linspace(0, len(timesteps) - 1, shown).round().astype(int).tolist()
    titles = ["un-edited", *(f"step {step + 1}" for step in steps), *results]
    height = (TILE + GAP) * len(requests) * len(probes) + 24
    canvas = Image.new("RGB", (LEFT + (TILE + GAP) * len(titles), height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for x, title in enumerate(titles):
        draw.text((LEFT + x * (TILE + GAP) + TILE / 2, 12), title, "black", font, anchor="mm")
    for r, request in enumerate(requests):
        for p, probe in enumerate(probes):
            y = 24 + (r * len(probes) + p) * (TILE + GAP)
            block = probe.hookpoints[0].replace("_blocks", "").replace("_block", "").replace("attentions", "attn")
            draw.multiline_text((4, y + TILE / 2), f"{request.style}\n{request.object}\n{block}", "black", font, anchor="lm")
            tiles = [base[r], *(_overlay(base[r], probe.masks[step, r]) for step in steps), *(own[r] for own in results.values())]
            for x, tile in enumerate(tiles):
                canvas.paste(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC), (LEFT + x * (TILE + GAP), y))
    return canvas


def _overlay(picture: np.ndarray, mask: Tensor) -> np.ndarray:
    """The picture, greyed, with detected patches coloured; mask bool [2, h, w]."""
    size = picture.shape[:2]
    halves = [
        np.asarray(Image.fromarray(half.numpy().astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.NEAREST)) for half in mask
    ]
    grey = 0.5 * picture.mean(2, keepdims=True) + 110
    colour = np.stack([halves[1], np.zeros(size), halves[0]], 2).astype(np.float32)
    seen = (halves[0] | halves[1])[..., None] > 0
    mixed: np.ndarray = np.where(seen, 0.45 * grey + 0.55 * colour, grey).clip(0, 255).astype(np.uint8)
    return mixed

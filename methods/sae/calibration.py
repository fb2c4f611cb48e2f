"""Gates with a known false-positive rate over a whole trajectory, where the public code's threshold fires almost everywhere.

Every (step, latent) is scaled by a high quantile of its largest activation in pictures that do not show the concept. A
picture's statistic is the largest scaled activation over all steps, chosen latents, tokens and halves of guidance; the
threshold is an order statistic of it (split conformal prediction: Vovk et al. 2005; exact for exchangeable pictures).
Three disjoint splits: latents and scales come from `select`, thresholds from `calibrate`, `verify` only checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from bench.api import BenchError, Probe, write_atomic
from methods.sae.autoencoder import SparseAutoencoder
from methods.sae.features import scores, top
from methods.sae.statistics import Statistics, read_tensors

FILE = "detectors.safetensors"
CANDIDATES, KEPT, QUANTILE, FLOOR = 32, 8, 0.995, 0.1


def candidates_of(statistics: Statistics) -> Tensor:
    """int64 [C, T, M], the latents of highest score per concept and step: those that a detector may use."""
    count = min(CANDIDATES, statistics.means.shape[-1])
    chosen = torch.stack([top(scores(statistics, c), count) for c in range(len(statistics.concepts))])
    return chosen.int().sort(dim=-1, descending=True, stable=True).indices[..., :count]


class MaximaCollector(Probe):
    """The largest activation per picture, step and candidate latent, over tokens and halves of guidance."""

    def __init__(self, sae: SparseAutoencoder, hookpoint: str, candidates: Tensor, rows: int) -> None:
        self.hookpoints, self.sae = (hookpoint,), sae
        self.shape = candidates.shape[0], candidates.shape[2]
        self.candidates = candidates.transpose(0, 1).flatten(1).to(sae.b_dec.device)
        self.found = torch.zeros(len(self.candidates), rows + 1, self.candidates.shape[1], device=sae.b_dec.device)

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`. Padding goes to a last row that is thrown away."""
        largest = self.sae.encode(self.sae.tokens(x_in, x_out)).amax(1)[:, self.candidates[step]]
        place = (row % self.found.shape[1])[:, None].expand_as(largest)
        self.found[step].scatter_reduce_(0, place, largest, "amax")

    @property
    def maxima(self) -> Tensor:
        """float32 [R, C, T, M]."""
        steps, rows, _ = self.found.shape
        return self.found[:, :-1].view(steps, rows - 1, *self.shape).permute(1, 2, 0, 3).cpu()


class Selection(NamedTuple):
    """What the `select` split decides; each [C, T, K], latents by falling recall."""

    latents: Tensor
    scales: Tensor
    recalls: Tensor
    places: Tensor
    """Of the latents among the candidates."""


def select(maxima: Tensor, shows: Tensor, candidates: Tensor) -> Selection:
    """`maxima` [R, C, T, M] of the select split, `shows` bool [R, C].

    Scale: `QUANTILE` of the latent's maxima in unrelated pictures, at least `FLOOR` of its largest anywhere (a latent that
    unrelated pictures never light would have none). Recall: share of the concept's pictures above that scale.
    """
    found = []
    for c in range(maxima.shape[1]):
        own, other = maxima[shows[:, c], c], maxima[~shows[:, c], c]
        scale = torch.maximum(other.quantile(QUANTILE, dim=0), FLOOR * maxima[:, c].amax(0)).clamp(min=1e-6)
        recall = (own > scale).float().mean(0)
        brightness = (own / scale).mean(0)
        order = (recall + brightness / (1e3 * (1 + brightness))).argsort(stable=True, dim=-1, descending=True)[:, :KEPT]
        found.append((candidates[c].gather(-1, order), scale.gather(-1, order), recall.gather(-1, order), order))
    return Selection(*(torch.stack(tables) for tables in zip(*found, strict=True)))


def step_statistics(maxima: Tensor, choice: Selection) -> Tensor:
    """float32 [R, C, T, K] of `maxima` [R, C, T, M] of all candidates: per step, the largest scaled activation of the first k latents."""
    return scaled(maxima.gather(-1, choice.places[None].expand(len(maxima), -1, -1, -1)), choice.scales)


def scaled(maxima: Tensor, scales: Tensor) -> Tensor:
    """float32 [R, C, T, K] of the chosen latents' `maxima` [R, C, T, K]: the largest of the first k in units of its scale."""
    return (maxima / scales).cummax(-1).values


@dataclass(frozen=True, eq=False)
class Detectors:
    """What thresholds for any concept, number of latents and false-positive rate are read from."""

    concepts: tuple[str, ...]
    timesteps: Tensor
    latents: Tensor
    """int64 [C, T, K], by falling recall on the select split."""
    scales: Tensor
    """float32 [C, T, K]."""
    calibrate: Tensor
    """float32 [C, K, N]: statistics of the calibrate split's pictures for the first k latents of every step."""
    calibrate_shows: Tensor
    """bool [C, N]."""
    verify: Tensor
    verify_shows: Tensor
    sae: str
    model: str

    def save(self, folder: Path) -> None:
        """Write the file beside the SAE, statistics in half precision, rounded towards firing less (up)."""
        tensors = {
            "timesteps": self.timesteps, "latents": self.latents.int(), "scales": self.scales,
            "calibrate": _half_up(self.calibrate), "verify": _half_up(self.verify),
            "calibrate_shows": self.calibrate_shows, "verify_shows": self.verify_shows,
        }  # fmt: skip
        about = {"concepts": "\n".join(self.concepts), "sae": self.sae, "model": self.model}
        write_atomic(folder / FILE, save({key: value.cpu().contiguous() for key, value in tensors.items()}, about))

    def threshold(self, concept: int, count: int, alpha: float, shares: int = 1) -> float:
        """The order statistic ⌈(n + 1)(1 − α)⌉ of n unrelated calibration pictures, for the first `count` latents.

        An unrelated picture exceeds it with probability at most α, divided by `shares` where so many detectors share it.
        BenchError if n is too small for that.
        """
        unrelated = self.calibrate[concept, count - 1][~self.calibrate_shows[concept]].sort().values
        return order_statistic(unrelated, alpha, shares)

    def gate(self, concept: int, count: int, alpha: float, shares: int = 1) -> tuple[Tensor, Tensor]:
        """Latents int64 [T, G] and thresholds float32 [T, G]: anything exceeds them in at most α / `shares` of unrelated pictures."""
        kept = self.latents.shape[-1]
        if not 1 <= count <= kept:
            raise BenchError(f"A gate has 1 to {kept} latents a step, not {count}: choose gate_features among these.")
        return self.latents[concept, :, :count], self.scales[concept, :, :count] * self.threshold(concept, count, alpha, shares)


def order_statistic(values: Tensor, alpha: float, shares: int = 1) -> float:
    """Sorted `values` [n] → the ⌈(n + 1)(1 − α / shares)⌉-th. BenchError if there is no such one."""
    rank = math.ceil((len(values) + 1) * (1 - alpha / shares) - 1e-9)
    if not 1 <= rank <= len(values):
        among = f", shared by {shares} detectors (concepts × hook points)" if shares > 1 else ""
        raise BenchError(
            f"{len(values)} calibration pictures are too few for a false-positive rate of alpha={alpha:g}{among}:"
            f" take alpha={math.ceil(1e4 * shares / (len(values) + 1)) / 1e4:g} or more, or calibrate with more pictures."
        )
    return float(values[rank - 1])


def load_detectors(folder: Path, sae: str, model: str) -> Detectors:
    """Read what `Detectors.save` wrote; BenchError where it is missing or of another SAE or model."""
    about, tensors = read_tensors(folder / FILE, sae, model)
    # Files of the first version carry one tensor more, which nothing reads.
    own = {field.name: tensors[field.name] for field in fields(Detectors) if field.name in tensors}
    own = {name: value.float() if value.dtype == torch.float16 else value for name, value in own.items()}
    own["latents"] = own["latents"].long()
    return Detectors(concepts=tuple(about["concepts"].split("\n")), sae=sae, model=model, **own)


def _half_up(values: Tensor) -> Tensor:
    """Non-negative float32 to the next float16 that is not below; the bits of positive floats are ordered like integers."""
    half = values.half()
    return torch.where(half.float() < values, (half.view(torch.int16) + 1).view(torch.float16), half)


def make_detectors(statistics: Statistics, candidates: Tensor, splits: Sequence[tuple[Tensor, Tensor]]) -> Detectors:
    """From (maxima [R, C, T, M], shows bool [R, C]) of the select, calibrate and verify splits."""
    (maxima, shows), *rest = splits
    choice = select(maxima, shows, candidates)
    calibrate, verify = (step_statistics(own, choice) for own, _ in rest)
    (_, calibrate_shows), (_, verify_shows) = rest
    return Detectors(
        statistics.concepts, statistics.timesteps, choice.latents, choice.scales,
        calibrate.amax(2).permute(1, 2, 0), calibrate_shows.T, verify.amax(2).permute(1, 2, 0), verify_shows.T,
        statistics.sae, statistics.model,
    )  # fmt: skip

"""Mean latents per concept and sampling step, gathered while sampling (SAeUron, `scripts/gather_sae_acts_ca_prompts*.py`).

The public scripts dump every picture; the means are all that is used, so only they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from bench.api import BenchError, GenerationRequest, Probe, write_atomic
from methods.sae.autoencoder import SparseAutoencoder

FILE = "statistics.safetensors"


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the features of a concept are chosen from."""

    concepts: tuple[str, ...]
    """Such as "object:fish", in the order of `means`."""
    timesteps: Tensor
    """int64 [T], falling."""
    means: Tensor
    """float32 [C, T, n]: mean over a concept's pictures and tokens of the TopK latents, zeros included, conditional half."""
    counts: Tensor
    """int64 [C], pictures per concept."""
    sae: str
    """Digest of the SAE."""
    model: str
    """Digest of the model."""

    def index(self, concept: str) -> int:
        """Place of a concept. BenchError if there is none."""
        if concept not in self.concepts:
            raise BenchError(
                f"The SAE's statistics know {len(self.concepts)} concepts but not {concept}: gather them in a copy"
                " (python -m bench train-sae --hookpoints BLOCK --part statistics,calibration --out FOLDER)."
            )
        return self.concepts.index(concept)

    def save(self, folder: Path) -> None:
        """Write the file beside the SAE, means in half precision."""
        tensors = {"timesteps": self.timesteps, "means": self.means.half(), "counts": self.counts}
        about = {"concepts": "\n".join(self.concepts), "sae": self.sae, "model": self.model}
        write_atomic(folder / FILE, save({key: value.cpu().contiguous() for key, value in tensors.items()}, about))


def load_statistics(folder: Path, sae: str, model: str) -> Statistics:
    """Read what `Statistics.save` wrote; BenchError where it is missing or was gathered with another SAE or model."""
    about, tensors = read_tensors(folder / FILE, sae, model)
    return Statistics(tuple(about["concepts"].split("\n")), tensors["timesteps"], tensors["means"].float(), tensors["counts"], sae, model)


def read_tensors(path: Path, sae: str, model: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that belongs to this SAE and model."""
    if not path.is_file():
        raise BenchError(f"{path} is missing: gather it (python -m bench train-sae --part statistics,calibration --out FOLDER).")
    try:
        with safe_open(path, "pt") as file:
            about, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own base-class exception
        raise BenchError(f"{path} is damaged ({error}): restore it or gather it again.") from error
    for what, wanted in (("sae", sae), ("model", model)):
        if about.get(what) != wanted:
            other = "SAE" if what == "sae" else "model"
            raise BenchError(
                f"{path} is of another {other}: gather it again (python -m bench train-sae --part statistics,calibration --out FOLDER)."
            )
    return about, tensors


class MeanCollector(Probe):
    """Sums of spatially averaged latents per concept and step, on the device."""

    def __init__(self, sae: SparseAutoencoder, hookpoint: str, membership: Tensor, steps: int) -> None:
        """`membership` float32 [R, C], 1 where a row shows a concept."""
        self.hookpoints, self.sae, self.membership = (hookpoint,), sae, membership
        self.sums = torch.zeros(membership.shape[1], steps, sae.config.latents, device=membership.device)

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`."""
        means = self.sae.encode(self.sae.tokens(x_in, x_out)).mean(1)
        weight = self.membership[row.clamp(min=0)] * ((row >= 0) & (role == 1))[:, None]
        self.sums[:, step] += weight.T @ means

    def statistics(self, concepts: Sequence[str], timesteps: Tensor, model: str) -> Statistics:
        """The means. BenchError if no picture shows one of the concepts."""
        counts = self.membership.sum(0)
        if not counts.all():
            raise BenchError(f"No picture of the statistics split shows {concepts[int(counts.argmin())]}: raise sae_pictures of the suite.")
        means = self.sums / counts[:, None, None]
        return Statistics(tuple(concepts), timesteps.cpu(), means.cpu(), counts.long().cpu(), self.sae.digest, model)


def membership_of(requests: Sequence[GenerationRequest], concepts: Sequence[str]) -> Tensor:
    """float32 [R, C]: which requests show which concept."""
    shown: list[Mapping[str, str]] = [{"style": request.style, "object": request.object} for request in requests]
    pairs = [concept.split(":") for concept in concepts]
    return torch.tensor([[float(labels[kind] == name) for kind, name in pairs] for labels in shown])

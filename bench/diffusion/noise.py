"""Initial noise that depends on the request alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.types import GenerationRequest


def noise_seed(seed: int, noise_key: str) -> int:
    """A 63-bit generator seed from (seed, noise_key)."""
    digest = hashlib.sha256(f"{seed}\n{noise_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def initial_noise(requests: Sequence[GenerationRequest], shape: tuple[int, int, int]) -> Tensor:
    """float32 [R, *shape] standard normal on the CPU; row r is a function of (seed, noise_key, shape) alone."""
    rows = []
    for request in requests:
        generator = torch.Generator("cpu").manual_seed(noise_seed(request.seed, request.noise_key))
        rows.append(torch.randn(shape, generator=generator, dtype=torch.float32))
    return torch.stack(rows)

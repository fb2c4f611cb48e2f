"""What this machine has for workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.errors import BenchError


def devices(name: str, workers: int | None) -> list[str]:
    """The device of each worker: all GPUs for `auto` and `cuda`, or the first so many; else one, or so many of a CPU."""
    count = torch.cuda.device_count() if name in ("auto", "cuda") else 0
    if count:
        if (workers or 1) > count:
            raise BenchError(f"--workers {workers}: there are {count} GPUs here.")
        return [f"cuda:{index}" for index in range(workers or count)]
    if (workers or 1) > 1 and name not in ("auto", "cpu"):
        raise BenchError(f"--workers {workers} is for a CPU or several GPUs, not for --device {name}.")
    return [name] * (workers or 1)


def threads(places: Sequence[str]) -> int | None:
    """Of each worker, where they share a CPU: they must not wait for each other's."""
    return None if places[0].startswith("cuda") else max(1, torch.get_num_threads() // len(places))

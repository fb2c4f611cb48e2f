"""What a method costs, measured apart from the results: one full batch of one method at a time, beside the base model."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from bench.diffusion.model import DiffusionModel
from bench.diffusion.sampler import Row, sample
from bench.interfaces import Erasure
from bench.types import GenerationRequest

REPEATS = 2


class PeakMemory:
    """Peak memory in MB while it is open: of the device on CUDA, of the process on Linux; `peak_mb` is None elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_mb: float | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            # Writing 5 resets the kernel's high-water mark of this process (man 5 proc).
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.device.type == "cuda":
            self.peak_mb = torch.cuda.max_memory_allocated(self.device) / 1e6
        elif sys.platform == "linux":
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
            self.peak_mb = int(line.split()[1]) / 1e3


def measure(
    model: DiffusionModel, erasures: Mapping[str, Erasure], requests: Sequence[GenerationRequest], dtype: torch.dtype, slots: int
) -> dict[str, dict[str, float | None]]:
    """Seconds a picture (sampled and decoded) and peak memory per label, each method in batches of its own.

    Methods take turns, `REPEATS` times; the fastest turn counts, as other work on the machine only ever slows one down.
    """
    seconds: dict[str, list[float]] = {label: [] for label in erasures}
    memory: dict[str, float | None] = {}
    for _ in range(REPEATS):
        for label, erasure in erasures.items():
            rows = [Row(request, erasure) for request in requests]
            count = slots // rows[0].slots
            rows = (rows * (count // len(rows) + 1))[:count]
            with ExitStack() as stack, PeakMemory(model.device) as peak:
                if erasure.weights is not None:
                    stack.enter_context(model.weights(erasure.weights.values))
                began = time.perf_counter()
                model.decode(sample(model, rows, dtype, slots))
                seconds[label].append((time.perf_counter() - began) / count)
            memory[label] = peak.peak_mb
    return {label: {"seconds_per_image": min(values), "peak_memory_mb": memory[label]} for label, values in seconds.items()}

"""What a method costs, measured apart from the results: one full batch of one method at a time, beside the base model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import torch

from bench.diffusion.model import DiffusionModel
from bench.diffusion.rows import Row
from bench.diffusion.sampler import sample
from bench.interfaces import Erasure
from bench.types import GenerationRequest

REPEATS = 2
FIT_COST = ("fit_seconds", "peak_memory_mb", "stored_mb")
SAMPLING_COST = ("seconds_per_image", "peak_memory_mb")


class PeakMemory:
    """Most memory in use while it is open, above what was in use before, in MB: the device's on CUDA, the process's on Linux.

    `peak_mb` is None where the system does not say.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_mb: float | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device) / 1e6
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets the process's high-water mark (man 5 proc)
            self._before = _process_mb("VmRSS") or 0.0
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        on_cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) / 1e6 if on_cuda else _process_mb("VmHWM")
        self.peak_mb = None if peak is None else max(0.0, peak - self._before)


def _process_mb(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{field}:")), None)


def measure(
    model: DiffusionModel, erasures: Mapping[str, Erasure], requests: Sequence[GenerationRequest], dtype: torch.dtype, slots: int
) -> dict[str, dict[str, float | None]]:
    """Seconds a picture (sampled and decoded) and peak memory per key of `erasures`, each in batches of its own.

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
                model.decode(sample(model, rows, dtype, slots).latents)
                seconds[label].append((time.perf_counter() - began) / count)
            memory[label] = peak.peak_mb
    return {key: dict(zip(SAMPLING_COST, (min(values), memory[key]), strict=True)) for key, values in seconds.items()}

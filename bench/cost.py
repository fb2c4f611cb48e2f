"""What a method costs, measured apart from the results: one full batch of one method at a time, beside the base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from bench.diffusion.memory import PeakMemory, release_freed_memory
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler
from bench.interfaces import Erasure
from bench.types import GenerationRequest

REPEATS, LONG = 2, 30.0
FIT_COST = ("fit_seconds", "peak_memory_mb", "stored_mb")
SHARED_SECONDS = "shared_seconds"
"""What a fit first made for others too."""
SAMPLING_COST = ("seconds_per_image", "peak_memory_mb")


def measure(
    sampler: Sampler,
    erasures: Mapping[str, Callable[[], Erasure]],
    requests: Sequence[GenerationRequest],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, float | None]]:
    """Seconds a picture (sampled and decoded) and peak memory per key of `erasures`, each in batches of its own, sharing nothing.

    Methods take turns, `REPEATS` times, but once where that takes more than `LONG` seconds; the fastest turn counts, as other work on
    the machine only ever slows one down. An erasure is loaded for its turn, so that only one is held.
    """
    model, alone = sampler.model, replace(sampler, share=False)
    seconds: dict[str, list[float]] = {label: [] for label in erasures}
    memory: dict[str, float | None] = {}
    start = time.perf_counter()
    for turn in range(REPEATS):
        if turn and time.perf_counter() - start > LONG:
            break
        for place, (label, load) in enumerate(erasures.items(), 1):
            say(f"{place} of {len(erasures)} rows{', again' if turn else ''}")
            erasure = load()
            rows = [Row(request, erasure) for request in requests]
            count = sampler.slots // rows[0].slots
            rows = (rows * (count // len(rows) + 1))[:count]
            release_freed_memory()
            with ExitStack() as stack, PeakMemory(model.device) as peak:
                if erasure.weights is not None:
                    stack.enter_context(model.weights(erasure.weights.values))
                began = time.perf_counter()
                model.decode(alone.all(rows).latents)
                seconds[label].append((time.perf_counter() - began) / count)
            memory[label] = peak.peak_mb
    return {key: dict(zip(SAMPLING_COST, (min(values), memory[key]), strict=True)) for key, values in seconds.items()}

"""What happens to a latent: decoded, judged and encoded in full batches, on CUDA beside the sampling in a stream and thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.scoring import PICTURES, Scorer, Verdict

_BEHIND = 2
"""Batches that may wait before sampling does."""


class Finisher:
    """Collects finished latents and gives `deliver(key, verdict)` for each. Open it as a context, whose end finishes the rest.

    On a CPU there is nothing to overlap with: batches are worked on at once, by the thread that samples.
    """

    def __init__(self, model: DiffusionModel, scorer: Scorer, deliver: Callable[[int, Verdict], None]) -> None:
        self.model, self.scorer, self.deliver = model, scorer, deliver
        self.held: list[tuple[int, Tensor, bool, str]] = []
        on_cuda = model.device.type == "cuda"
        self.stream = torch.cuda.Stream(model.device) if on_cuda else None
        self.pool = ThreadPoolExecutor(1) if on_cuda else None
        self.running: list[Future[None]] = []

    def __enter__(self) -> Finisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self.held:
                self._submit()
            while self.running and kind is None:
                self.running.pop(0).result()
        finally:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)

    def add(self, key: int, latent: Tensor, keep: bool, prompt: str) -> None:
        """One picture, latent float32 [4, h, w]; `keep` asks for its file's bytes."""
        self.held.append((key, latent, keep, prompt))
        if len(self.held) == PICTURES:
            self._submit()

    def _submit(self) -> None:
        keys, latents, keep, prompts = zip(*self.held, strict=True)
        self.held = []
        batch = torch.stack(latents)
        if self.pool is None:
            self._finish(keys, batch, keep, prompts)
            return
        ready = torch.cuda.Event()
        ready.record()
        self.running.append(self.pool.submit(self._beside, ready, keys, batch, keep, prompts))
        while len(self.running) > _BEHIND:
            self.running.pop(0).result()

    def _beside(
        self, ready: torch.cuda.Event, keys: tuple[int, ...], latents: Tensor, keep: tuple[bool, ...], prompts: tuple[str, ...]
    ) -> None:
        with torch.cuda.stream(self.stream):
            ready.wait()
            latents.record_stream(torch.cuda.current_stream())
            self._finish(keys, latents, keep, prompts)

    def _finish(self, keys: tuple[int, ...], latents: Tensor, keep: tuple[bool, ...], prompts: tuple[str, ...]) -> None:
        for key, verdict in zip(keys, self.scorer.judge(self.model.decode(latents), keep, prompts), strict=True):
            self.deliver(key, verdict)

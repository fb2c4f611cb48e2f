"""The two-method, all-concept table with shared trajectories beside without."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bench.diffusion.rows import Row
from bench.diffusion.sampler import Counts, Sampler
from bench.interfaces import Erasure
from bench.metrics.unlearning import scores
from bench.perf.pairs import alternate, ratio
from bench.scoring import judge_all, load_judge
from bench.suites.suite import Suite
from bench.types import GenerationRequest, Target

Erasures = Mapping[tuple[str, Target], Erasure]
"""By method and target."""


def sharing_rows(
    suite: Suite, sampler: Sampler, erasures: Erasures, requests: Sequence[GenerationRequest], say: Callable[[str], None]
) -> dict[str, Any]:
    """UNet rows (slots that rows used) with sharing ÷ without; who forks when, per method and target; what is erased meanwhile."""
    own = replace(sampler, share=True, counts=Counts())
    keys, rows = _rows(erasures, requests)
    latents = torch.full((len(rows), *sampler.model.latent_shape), torch.nan)
    forked: dict[int, int | None] = {}
    began = time.perf_counter()
    for done in own.stream(rows):
        forked.update(dict.fromkeys(done.rows, done.forked_at))
        if done.latent is not None:
            latents[done.rows] = done.latent.cpu()
        say(f"sharing, {len(forked)} of {len(rows)} pictures")
    seconds = time.perf_counter() - began
    table = pd.DataFrame([
        {
            "method": method, "target": str(target), "forked_at": forked[i],
            "shows": target.involves(row.request.style, row.request.object),
        }
        for i, (row, (method, target)) in enumerate(zip(rows[len(requests) :], keys, strict=True), start=len(requests))
    ])  # fmt: skip
    without = sum(row.slots * row.request.steps for row in rows)
    unrelated = table[~table["shows"]]
    return {
        "macro_ua": _macro_ua(suite, sampler, erasures, requests, latents[len(requests) :]), "seconds": seconds,
        "rows_with": own.counts.slots, "rows_without": without, "ratio": own.counts.slots / without, "calls": own.counts.calls,
        "filled": own.counts.slots / (own.counts.calls * own.slots), "never_fork": float(table["forked_at"].isna().mean()),
        "unrelated_fork": _mean(unrelated["forked_at"].notna()), "unrelated": len(unrelated),
        "mean_fork_step": _mean(table["forked_at"].dropna()), "per_target": _per_target(table),
    }  # fmt: skip


def _macro_ua(
    suite: Suite, sampler: Sampler, erasures: Erasures, requests: Sequence[GenerationRequest], latents: Tensor
) -> dict[str, float | None]:
    """By method and kind, the mean over targets of UA on the pictures that were asked to show the target.

    `latents` [erasures × requests, 4, h, w], those of each erasure together.
    """
    device = sampler.model.device
    judge = load_judge(suite, "evaluation", device)
    found: dict[str, list[float | None]] = {}
    for (method, target), part in zip(erasures, latents.split(len(requests)), strict=True):
        own = [i for i, request in enumerate(requests) if target.involves(request.style, request.object)]
        if own:
            seen = judge_all(judge, sampler.model.decode(part[own].to(device)))
            frame = pd.DataFrame({
                "style": [requests[i].style for i in own], "object": [requests[i].object for i in own],
                "style_pred": [judge.styles[i] for i in seen.style.argmax(1)],
                "object_pred": [judge.objects[i] for i in seen.object.argmax(1)],
            })  # fmt: skip
            found.setdefault(f"{method}, {target.kind}s", []).append(scores(frame, target, suite.rules).ua)
    return {name: _mean(pd.Series(own, dtype=float)) for name, own in found.items()}


def _per_target(table: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for (method, target), own in table.groupby(["method", "target"], sort=False):
        rest = own.loc[~own["shows"], "forked_at"]
        found.append({
            "method": method, "target": target, "never_fork": float(own["forked_at"].isna().mean()),
            "unrelated_fork": _mean(rest.notna()), "mean_fork_step": _mean(own["forked_at"].dropna()),
        })  # fmt: skip
    return found


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) else None


def sharing_seconds(
    sampler: Sampler, erasures: Erasures, requests: Sequence[GenerationRequest], pairs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds with sharing ÷ without, by turns, and the same ratio of UNet rows."""
    _, rows = _rows(erasures, requests)
    samplers = {share: replace(sampler, share=share, counts=Counts()) for share in (True, False)}
    cases = {str(share): lambda own=own: own.all(rows) for share, own in samplers.items()}
    seconds = alternate(cases, pairs, sampler.model.device, say)
    return {
        "seconds": ratio(seconds["True"], seconds["False"]), "rows": samplers[True].counts.slots / samplers[False].counts.slots,
        "erasures": len(erasures), "requests": len(requests),
    }  # fmt: skip


def _rows(erasures: Erasures, requests: Sequence[GenerationRequest]) -> tuple[list[tuple[str, Target]], list[Row]]:
    """The base model's rows, then each erasure's; the keys of the latter."""
    rows = [Row(request, Erasure()) for request in requests]
    rows += [Row(request, erasure) for erasure in erasures.values() for request in requests]
    return [key for key in erasures for _ in requests], rows

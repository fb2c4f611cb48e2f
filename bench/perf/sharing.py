"""The two-method, all-concept table with shared trajectories beside without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from bench.diffusion.rows import Row
from bench.diffusion.sampler import Counts, Sampler
from bench.interfaces import Erasure
from bench.perf.pairs import alternate, ratio
from bench.types import GenerationRequest, Target

Erasures = Mapping[tuple[str, Target], Erasure]
"""By method and target."""


def sharing_rows(sampler: Sampler, erasures: Erasures, requests: Sequence[GenerationRequest], say: Callable[[str], None]) -> dict[str, Any]:
    """UNet rows (slots that rows used) with sharing ÷ without; who forks when, per method and target."""
    own = replace(sampler, share=True, counts=Counts())
    keys, rows = _rows(erasures, requests)
    forked: dict[int, int | None] = {}
    for done in own.stream(rows):
        forked.update(dict.fromkeys(done.rows, done.forked_at))
        say(f"sharing, {len(forked)} of {len(rows)} pictures")
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
        "rows_with": own.counts.slots, "rows_without": without, "ratio": own.counts.slots / without, "calls": own.counts.calls,
        "filled": own.counts.slots / (own.counts.calls * own.slots), "never_fork": float(table["forked_at"].isna().mean()),
        "unrelated_fork": _mean(unrelated["forked_at"].notna()), "unrelated": len(unrelated),
        "mean_fork_step": _mean(table["forked_at"].dropna()), "per_target": _per_target(table),
    }  # fmt: skip


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

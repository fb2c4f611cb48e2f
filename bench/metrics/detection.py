"""How often a method that acts on activations acts where it should not: its false positives on evaluation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.metrics.uncertainty import Design, Estimate, Share, wilson
from bench.metrics.unlearning import CELL, shows
from bench.types import KINDS, Target


def detection(outcomes: pd.DataFrame, targets: Sequence[Target]) -> dict[str, Any] | None:
    """{"pooled": …, "targets": {target: `false_positives`}}; None if nothing was watched.

    `outcomes` with columns target, style, object, seed, first_edit (−1: never, null: not watched). Pooled: `unrelated`, the share of
    (target, picture without it) in which an edit changed anything, `n` of them, of `pictures` different ones, and `low`, `high`,
    a 95 % interval for other noise, in which different targets' pictures of one request vary together.
    """
    own = {str(target): outcomes[outcomes["target"] == str(target)] for target in targets}
    found = {str(target): rates for target in targets if (rates := false_positives(own[str(target)], target))}
    if not found:
        return None
    unrelated = pd.concat([own[str(target)][~shows(own[str(target)], target)] for target in targets if str(target) in found])
    pooled = _pooled(unrelated.dropna(subset=["first_edit"]))
    return {"pooled": pooled, "targets": found}


def _pooled(pictures: pd.DataFrame) -> dict[str, Any]:
    """Over targets, a picture that several have being one unit."""
    unit = pictures.groupby(CELL, observed=True).ngroup().to_numpy()
    cells = pictures.assign(unit=unit).drop_duplicates("unit").sort_values("unit")
    design = Design((cells["style"].astype(str) + "/" + cells["object"].astype(str)).to_numpy())
    share = Share.of((pictures["first_edit"] >= 0).to_numpy(dtype=np.float64), unit, len(cells))
    low, high = Estimate(share.value, design.spread(share.influences), len(cells)).bounds(design.quantile)
    return {"unrelated": share.value, "low": low, "high": high, "n": share.n, "pictures": len(cells)}


def false_positives(outcomes: pd.DataFrame, target: Target) -> dict[str, Any] | None:
    """Shares of one target's pictures in which an edit changed anything at any step; None if that was not watched.

    The result has `target`, the share of pictures that show the target in which it acted (recall), and for those that do not:
    `unrelated`, `low`, `high` (Wilson's 95 % interval), `n`, and `worst`, the other concept with the largest share, with its own
    interval, which knows nothing of the choice.
    """
    seen = outcomes.dropna(subset=["first_edit"])
    if seen.empty:
        return None
    own = shows(seen, target)
    acted = seen["first_edit"] >= 0
    related, unrelated = acted[own], acted[~own]
    if unrelated.empty:
        return None
    others = [
        {"concept": f"{kind}:{name}", **_share(group)}
        for kind in KINDS
        for name, group in unrelated.groupby(seen.loc[~own, kind], observed=True)
        if name not in target.names(kind)
    ]
    rates = _share(unrelated)
    return {
        "target": float(related.mean()) if len(related) else None, "target_n": len(related), "unrelated": rates.pop("share"), **rates,
        "worst": max(others, key=lambda other: other["share"]),
    }  # fmt: skip


def _share(acted: pd.Series) -> dict[str, Any]:
    low, high = wilson(int(acted.sum()), len(acted)) or (0.0, 1.0)
    return {"share": float(acted.mean()), "low": low, "high": high, "n": len(acted)}

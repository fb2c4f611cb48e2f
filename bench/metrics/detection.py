"""How often a method that acts on activations acts where it should not: its false positives on evaluation pictures."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.metrics.resampling import wilson
from bench.metrics.unlearning import shows
from bench.types import KINDS, Target


def false_positives(outcomes: pd.DataFrame, target: Target) -> dict[str, Any] | None:
    """Shares of pictures in which an edit changed anything at any step; None if that was not watched.

    `outcomes` of one target, with columns style, object, first_edit (−1: never, null: not watched). The result has `target`,
    the share of pictures that show the target in which it acted (recall), and for those that do not: `unrelated`, `low`,
    `high` (Wilson's 95 % interval), `n`, and `worst`, the other concept of the target's kinds with the largest share.
    """
    seen = outcomes.dropna(subset=["first_edit"])
    if seen.empty:
        return None
    own = shows(seen, target)
    acted = seen["first_edit"] >= 0
    related, unrelated = acted[own], acted[~own]
    if unrelated.empty:
        return None
    low, high = wilson(int(unrelated.sum()), len(unrelated)) or (0.0, 1.0)
    kinds = [kind for kind in KINDS if target.names(kind)]
    shares = {
        f"{kind}:{name}": (float(group.mean()), len(group)) for kind in kinds for name, group in unrelated.groupby(seen.loc[~own, kind])
    }
    worst = max(shares, key=lambda name: shares[name][0])
    return {
        "target": float(related.mean()) if len(related) else None, "target_n": len(related), "unrelated": float(unrelated.mean()),
        "low": low, "high": high, "n": len(unrelated),
        "worst": {"concept": worst, "share": shares[worst][0], "n": shares[worst][1]},
    }  # fmt: skip

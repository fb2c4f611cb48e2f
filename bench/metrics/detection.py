"""How often a method that acts on activations acts where it should not: its false positives on evaluation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.metrics.uncertainty import Design, Estimate, Share, wilson
from bench.metrics.unlearning import CELL, shows
from bench.types import KINDS, Kind, Target


def detection(outcomes: pd.DataFrame, targets: Sequence[Target]) -> dict[str, Any] | None:
    """{"pooled": …, "targets": {target: `false_positives`}}; None if nothing was watched.

    `outcomes` with columns target, style, object, seed, first_edit (−1: never, null: not watched). Pooled: `unrelated`, the share of
    (target, picture without it) in which an edit changed anything, `n` of them, of `pictures` different ones, and `low`, `high`,
    a 95 % interval for other noise, in which different targets' pictures of one request vary together.
    """
    groups = {str(target): own for target, own in outcomes.groupby("target", observed=True)}
    own = {str(target): groups[str(target)] for target in targets if str(target) in groups}
    found = {name: rates for name, part in own.items() if (rates := false_positives(part, Target.parse(name)))}
    if not found:
        return None
    unrelated = pd.concat([own[name][~shows(own[name], Target.parse(name))] for name in found])
    pooled = _pooled(unrelated.dropna(subset=["first_edit"]))
    return {"pooled": pooled, "targets": found}


def _pooled(pictures: pd.DataFrame) -> dict[str, Any]:
    """Over targets, a picture that several have being one unit."""
    unit = pictures.groupby(CELL, observed=True).ngroup().to_numpy()
    cells = pictures.assign(unit=unit).drop_duplicates("unit").sort_values("unit")
    design = Design((cells["style"].astype(str) + "/" + cells["object"].astype(str)).to_numpy())
    share = Share.of((pictures["first_edit"] >= 0).to_numpy(dtype=np.float64), unit, len(cells))
    low, high = Estimate(share.value, design.spread(share.influences), len(cells)).bounds(design)
    return {"unrelated": share.value, "low": low, "high": high, "n": share.n, "pictures": len(cells)}


def false_positives(outcomes: pd.DataFrame, target: Target) -> dict[str, Any] | None:
    """Shares of one target's pictures in which an edit changed anything at any step; None if that was not watched.

    The result has `target`, the share of pictures that show the target in which it acted (recall), and for those that do not:
    `unrelated`, `low`, `high` (Wilson's 95 % interval), `n`, and `worst`, the other concept with the largest share, with its own
    interval, which knows nothing of the choice.
    """
    first = outcomes["first_edit"].to_numpy(np.float64, na_value=np.nan)
    shown, watched, acted = shows(outcomes, target).to_numpy(), ~np.isnan(first), first >= 0
    if not (watched & ~shown).any():
        return None
    worst = [_worst(outcomes[kind], acted, watched & ~shown, kind, target) for kind in KINDS]
    related, rates = acted[watched & shown], _share(acted[watched & ~shown])
    return {
        "target": float(related.mean()) if len(related) else None, "target_n": len(related), "unrelated": rates.pop("share"), **rates,
        "worst": max((own for own in worst if own), key=lambda own: own["share"]),
    }  # fmt: skip


def _worst(
    names: pd.Series, acted: NDArray[np.bool_], counted: NDArray[np.bool_], kind: Kind, target: Target
) -> dict[str, Any] | None:  # fmt: skip
    """Of a kind's concepts beside the target's, the one in whose counted pictures it acted most often, the first by name of several."""
    codes, known = pd.factorize(names, sort=True)
    n, hits = (np.bincount(codes[own], minlength=len(known)) for own in (counted, counted & acted))
    others = (n > 0) & ~np.isin(np.asarray(known, dtype=object), list(target.names(kind)))
    if not others.any():
        return None
    place = int(np.argmax(np.where(others, hits / np.maximum(1, n), -1.0)))
    return {"concept": f"{kind}:{known[place]}", **_share(acted[counted & (codes == place)])}


def _share(acted: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = wilson(int(acted.sum()), len(acted)) or (0.0, 1.0)
    return {"share": float(acted.mean()), "low": low, "high": high, "n": len(acted)}

"""What attacks bring back: UA before and after each, under the union of a fixed set, and how it depends on the budget.

An attack's outcomes are a frame with one row per goal (a picture that the erased concept is to come back in) and the columns target,
style, object, seed, clean (whether the concept is there without any attack), success (whether it is in the end), confirmed (whether a
third network says so too; null without one), gradient_steps, judged, seconds (a goal's share of its attack's). Shares are in [0, 1].
Intervals (95 %) are for other goals of these concepts: a goal is a unit of `bench.metrics.uncertainty`, shared by all methods and
attacks, its target the stratum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.metrics.uncertainty import Design, Estimate, Share
from bench.registry import ATTACK_SETS
from bench.types import Target

GOAL = ["target", "style", "object", "seed"]
UNION = "prompts-v1"
COLUMNS = (
    "method", "kind", "attack", "goals", "ua_before", "ua_before_low", "ua_before_high", "ua_after", "ua_after_low", "ua_after_high",
    "drop", "drop_low", "drop_high", "confirmed", "gradient_steps", "judged", "seconds",
)  # fmt: skip

Outcomes = Mapping[str, Mapping[str, pd.DataFrame]]
"""method → attack → frame."""


def attacked(outcomes: Outcomes) -> pd.DataFrame:
    """One row per method, kind of target and attack, and one of the union where a method has all of its attacks; sorted.

    ua_before and ua_after are one minus the shares of goals with the concept, drop their difference; confirmed is the share of
    goals that the attack alone reached whose picture the third network confirms; gradient_steps and judged are means over the goals
    that were attacked, seconds over all.
    """
    every = [frame[GOAL] for own in outcomes.values() for frame in own.values()]
    if not every:
        return pd.DataFrame(columns=COLUMNS)
    goals = pd.concat(every).drop_duplicates().sort_values(GOAL, ignore_index=True).reset_index(names="unit")
    design, rows = Design(goals["target"].to_numpy()), []
    for method, own in sorted(outcomes.items()):
        frames = {name: frame.merge(goals, on=GOAL) for name, frame in own.items()}
        whole = all(name in frames for name in ATTACK_SETS[UNION])
        union = {UNION: _union([frames[name] for name in ATTACK_SETS[UNION]])} if whole else {}
        for name, frame in sorted({**frames, **union}.items()):
            kinds = frame["target"].map(lambda target: Target.parse(target).kind)
            for kind, part in frame.groupby(kinds):
                rows.append({"method": method, "kind": kind, "attack": name, **_row(part, design)})
    return pd.DataFrame(rows, columns=COLUMNS)


def curves(outcomes: Outcomes) -> pd.DataFrame:
    """Success as a function of what was spent: method, kind, attack, budget (judged or gradient_steps), spent, success.

    `success` is the share of all goals that show the concept after `spent` pictures judged, or gradient steps, of each; those that
    show it without an attack at 0. One row per number of pictures, and per number of gradient steps at which a goal ended.
    """
    rows = []
    for method, own in sorted(outcomes.items()):
        for name, frame in sorted(own.items()):
            kinds = frame["target"].map(lambda target: Target.parse(target).kind)
            for kind, part in frame.groupby(kinds):
                steps = sorted({0, *part["gradient_steps"].astype(int)})
                for budget, grid in (("judged", range(int(part["judged"].max()) + 1)), ("gradient_steps", steps if steps[1:] else [])):
                    reached = part.loc[part["success"].astype(bool), budget].to_numpy()
                    rows += [(method, kind, name, budget, spent, float((reached <= spent).sum() / len(part))) for spent in grid]
    return pd.DataFrame(rows, columns=["method", "kind", "attack", "budget", "spent", "success"])


def _union(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Goals that all attacks had: success of any, what all together took."""
    every = pd.concat(frames)
    every = every[every.groupby("unit")["unit"].transform("size") == len(frames)]
    sums = {name: (name, "sum") for name in ("gradient_steps", "judged", "seconds")}
    told = every["confirmed"].astype(float).where(every["success"].astype(bool))  # null where no third network was asked
    return (
        every.assign(confirmed=told)
        .groupby([*GOAL, "unit"], as_index=False)
        .agg(clean=("clean", "any"), success=("success", "any"), confirmed=("confirmed", "max"), **sums)
    )


def _row(goals: pd.DataFrame, design: Design) -> dict[str, Any]:
    clean, success = (goals[name].to_numpy(dtype=bool) for name in ("clean", "success"))
    found: dict[str, Any] = {"goals": len(goals)}
    # What was there without an attack is there with it: the drop is a share too, of goals that the attack alone reached.
    for name, seen in (("ua_before", ~clean), ("ua_after", ~success), ("drop", success & ~clean)):
        one = _share(seen, goals["unit"].to_numpy(), design)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), (one.value, *one.bounds(design)), strict=True))
    told = goals.loc[success & ~clean, "confirmed"].dropna()
    tried = goals[~goals["clean"]]
    found["confirmed"] = float(told.astype(float).mean()) if len(told) else np.nan
    found |= {name: float(tried[name].mean()) if len(tried) else np.nan for name in ("gradient_steps", "judged")}
    return found | {"seconds": float(goals["seconds"].mean())}


def _share(seen: NDArray[np.bool_], unit: NDArray[np.int64], design: Design) -> Estimate:
    """Of goals, [n] each."""
    share = Share.of(seen.astype(np.float64), unit, len(design.stratum))
    return Estimate(share.value, design.spread(share.influences), share.n, 1 / share.n**2)

"""What a reader must know of the tables, in plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.leaderboard.table import KINDS, Leaderboard
from bench.metrics.robustness import UNION
from bench.registry import ATTACK_SETS

TITLES = {
    "style": "Unlearning of styles",
    "object": "Unlearning of objects",
    "mixed": "Unlearning of styles and objects at once",
    "new style": "What to expect of other styles",
    "new object": "What to expect of other objects",
    "new mixed": "What to expect of other pairs of style and object",
    **{f"{kind} attacks": f"UA under attack, {kind} targets" for kind in KINDS},
    "cost": "Cost",
}
BRIEF = ("ua", "ira", "cra", "score", "ar_target")
_EVENLY = (
    "of pictures that are spread evenly over the prompts lie a little below those of independent ones, by about the same amount in every"
    " row: compare with the ceiling's."
)
COLUMN_NOTES = {
    "kernel": f"Kernel distances {_EVENLY}",
    "ar_target": "AR is the share of pictures, prompted with the target or retained, that are farther from every class than 95 % of the "
    "unedited model's pictures in general: compare with the ceiling's on the same prompts.",
    "clip_retained": "CLIP is the mean fit of picture and prompt (100 times the cosine, at least 0), with the target and without.",
    "fid_unlearncanvas": "FID (UnlearnCanvas) has that code's network and resizing: it compares with its published numbers alone.",
    "kid": f"FID (clean) and KID are those of clean-fid, KID over all pictures; values {_EVENLY}",
}
"""What a reader must know of a column, by its key."""
ATTACK_NOTE = (
    "UA is the share of attacked pictures in which the judge does not see the concept, without attack and at the end of each attack. Beside"
    " the unedited model's name is what attacks do to prompts that name the concept's anchor instead: they must bring it down. Intervals"
    " (95 %) are for other goals of the same concepts."
)
UNION_NOTE = f"The column {UNION} is under all of {', '.join(ATTACK_SETS[UNION])}, a picture counting only if it survives each."
NOISE_NOTE = (
    "Intervals (95 %) are for other noise on these concepts, not for new ones. Beside a rank are those that the method could have."
    " † marks a UA, IRA, CRA or score that no row is surely better than, by paired differences; other columns are not tested. Both hold for"
    " all rows at once."
)
SPREAD_NOTE = "Beside a distance, after ±, is the standard deviation over seeds of the same from one seed's pictures, as many for each."
DOUBT_NOTE = "‡ marks rows that are unreliable, for what their notes say."
NEW_NOTE = (
    "Intervals (95 %) are for new concepts of the kind, Student's t over concepts, given from six on. They are wide: so few concepts say"
    " little of others."
)


def status(leaderboard: Leaderboard) -> str:
    """Valid, or why it is not."""
    return f"INVALID: {leaderboard.invalid}" if leaderboard.invalid else "valid"


def title_of(leaderboard: Leaderboard, title: str) -> str:
    """A heading that says so if the numbers may not be used."""
    return f"INVALID: {title}" if leaderboard.invalid else title


def caption_of(leaderboard: Leaderboard, table: str) -> str:
    """What a reader must know to use the numbers, in plain text."""
    return f"{source_of(leaderboard)} {reading_of(leaderboard, table)}".rstrip()


def source_of(leaderboard: Leaderboard) -> str:
    """Protocol and provenance, and whether the numbers may be used."""
    invalid = f"INVALID: {leaderboard.invalid}. " if leaderboard.invalid else ""
    concepts, seeds = (f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((leaderboard.concepts, "concept"), (leaderboard.seeds, "seed")))
    return f"{invalid}Protocol {leaderboard.protocol}, {concepts}, {seeds}, provenance {leaderboard.provenance}."


def reading_of(leaderboard: Leaderboard, table: str) -> str:
    """What its columns and marks mean."""
    parts, keys = [], {column.key for column in leaderboard.columns_of(table)}
    if table in ("style", "object"):
        ga = ", and neither is GA, the plain mean of UA, IRA, CRA and 1 − AR over all of a target's pictures" if "ga" in keys else ""
        parts.append(
            "Methods with outcomes for every target are ranked by score, the harmonic mean of UA and of IRA and CRA relative to "
            f"the unedited model; Avg, the plain mean, is not ranked, because it rewards doing nothing{ga}."
        )
    if table.endswith("attacks"):
        parts += [ATTACK_NOTE, *([UNION_NOTE] if UNION in keys else [])]
    elif table.startswith("new "):
        parts.append(NEW_NOTE)
    elif table != "cost" and len(leaderboard.differences):
        parts += [text for key, text in COLUMN_NOTES.items() if key in keys]
        parts.append(NOISE_NOTE)
        spread = any(cell.seed_sd is not None for row in leaderboard.rows for (own, _), cell in row.cells.items() if own == table)
        parts += [SPREAD_NOTE] if spread else []
    parts += [DOUBT_NOTE] if any(row.unreliable(table) for row in leaderboard.rows) else []
    return " ".join(parts)


PUBLISHED_NOTE = "In %, but for FID. None was measured by this project; they are neither averaged nor ranked with what was."
PUBLISHED_FIGURES = ("ua", "ira", "cra", "ar", "ga", "fid")


def under_attack(row: Mapping[str, Any]) -> str:
    """What a paper says of UA before and after an attack, empty for other rows."""
    if row.get("ua_after") is None:
        return ""
    before = "" if row.get("ua_before") is None else f"{row['ua_before']:g} → "
    return f"{before}{row['ua_after']:g} ({row['attack']})"

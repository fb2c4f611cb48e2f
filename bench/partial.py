"""Records of a run that is not done yet, from the units that are there: for a look at it, never for its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.errors import BenchError
from bench.packed import stored_digest
from bench.store import Store
from bench.types import Card, Record

COLUMNS = ["style", "object", "seed", "style_pred", "object_pred", "first_edit"]
LATER = "not sampled yet"


def records_so_far(store: Store) -> list[Record]:
    """One per row of the plan, with the outcomes that are there; distances and artifacts come at the end. BenchError without any."""
    plan, config = store.read_json("plan.json", ["units"]), store.config()
    if plan is None or "rows" not in plan:
        raise BenchError(f"{store.folder} has no records yet: finish it with the command that began it.")
    own: dict[str, list[Mapping[str, Any]]] = {label: [] for label in plan["rows"]}
    for entry in plan["units"]:
        if "attack" not in entry:
            own[entry["method"]].append(entry)
    found = [_record(store, label, row, own[label], plan, config) for label, row in plan["rows"].items()]
    if not any(record.outcomes["target"] for record in found if record.method != "none"):
        raise BenchError(f"{store.folder} has no picture of a method yet, as the unedited model comes first: wait (`status` counts units).")
    return found


def _record(
    store: Store, label: str, row: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], plan: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Record:  # fmt: skip
    frames, missing = [pd.DataFrame(columns=["target", *COLUMNS])], dict[str, str]()
    for entry in entries:
        frame = store.read_unit(entry["unit"], COLUMNS, stored_digest(store.folder / "erasures" / entry["fit"]))
        if frame is not None:
            frames.append(frame.assign(target=entry["target"]))
        elif entry["target"]:
            missing[entry["target"]] = LATER
    outcomes = pd.concat(frames, ignore_index=True)
    there = set(outcomes["target"])
    card = Card(**{**row["card"], "supports": tuple(row["card"]["supports"])})
    columns = {name: outcomes[name].astype(object).where(outcomes[name].notna(), None).tolist() for name in ("target", *COLUMNS)}
    return Record(
        method=row["method"], label=label, version=row["version"], config=row["config"], card=card, protocol=config["protocol"],
        numerics=config["numerics"], outcomes=columns, missing={name: why for name, why in missing.items() if name not in there},
        provenance={"plan": plan["plan"]}, tuning={"budget": row["budget"], "configs": {}} if row["budget"] else None,
    )  # fmt: skip

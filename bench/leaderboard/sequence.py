"""Concepts that are removed one after the other: what is still gone, and what is retained, after every task."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.leaderboard.frames import outcome_frames
from bench.metrics.unlearning import NONE, scores
from bench.types import Concept, MetricRules, Record, Target

COLUMNS = ["method", "how", "after", "task", "metric", "value", "n"]


def sequence(records: Sequence[Record], order: Sequence[str], rules: MetricRules) -> pd.DataFrame:
    """One row per method, task t and figure after it, shares in [0, 1].

    `ua` of each concept removed so far (`task`), on the pictures prompted with it: a triangle, in which earlier concepts may come
    back. `ira`, `cra` and `ra`, their mean (or IRA alone where styles and objects are removed together), of what was not removed by
    then: after every task, not only the last. `how`: whether the method went on from its last erasure or was fitted again on all.
    """
    rows = []
    labels = {record.label: record for record in records}
    for label, frame in outcome_frames(records).items():
        if label == NONE:
            continue
        how = str(labels[label].provenance.get("sequential", ""))
        for after in range(1, len(order) + 1):
            target = Target.of(map(Concept.parse, order[:after]))
            own = frame[frame["target"] == str(target)]
            if own.empty:
                continue
            head = (label, how, after)
            rows += [(*head, *_removed(own, Concept.parse(name))) for name in order[:after]]
            found = scores(own, target, rules)
            parts = [value for value in (found.ira, found.cra) if value is not None]
            ra = sum(parts) / len(parts) if parts else None
            retained = (("ira", found.ira, found.ira_n), ("cra", found.cra, found.cra_n), ("ra", ra, found.ira_n + found.cra_n))
            rows += [(*head, "", name, value, n) for name, value, n in retained]
    return pd.DataFrame(rows, columns=COLUMNS)


def _removed(pictures: pd.DataFrame, concept: Concept) -> tuple[str, str, float | None, int]:
    own = pictures[(pictures[concept.kind] == concept.name) & pictures[f"{concept.kind}_pred"].notna()]
    share = float((own[f"{concept.kind}_pred"] != concept.name).mean()) if len(own) else None
    return str(concept), "ua", share, len(own)


def to_markdown(table: pd.DataFrame, order: Sequence[str]) -> str:
    """A triangle per method: a row per task, a column per concept, then IRA, CRA and RA, in per cent."""
    parts = [
        "# One concept after the other",
        "UA of each concept after each task, in %; IRA, CRA and their mean RA of what is not removed by then.",
    ]
    for (label, how), own in table.groupby(["method", "how"], sort=False):
        lines = [f"| after | {' | '.join(order)} | IRA | CRA | RA |", f"|---|{'---:|' * (len(order) + 3)}"]
        for after, rows in own.groupby("after"):
            values = {row.task or row.metric: row.value for row in rows.itertuples()}
            cells = [_percent(values.get(name)) for name in (*order, "ira", "cra", "ra")]
            lines.append(f"| {order[int(after) - 1]} | {' | '.join(cells)} |")
        parts += [f"## {label} ({how})", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _percent(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{100 * value:.1f}"

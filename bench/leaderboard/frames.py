"""Records as frames of outcomes, after a look at whether they can stand in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import BenchError
from bench.leaderboard.notes import kind_of
from bench.metrics.unlearning import CELL, NONE
from bench.types import Record, Target

OUTCOMES = ["target", *CELL, "style_pred", "object_pred"]
NAMES = [name for name in OUTCOMES if name != "seed"]
FAR, CLIP = "far", "clip"
MORE = {FAR: np.float32, CLIP: np.float64, "first_edit": np.float32}
"""Columns of outcomes that not all records have, NaN for None."""


def records_by_key(records: Sequence[Record]) -> dict[str, Record]:
    """Records by label, sorted; that of `none` under "none" whatever its label."""
    protocols = sorted({record.protocol for record in records})
    if len(protocols) > 1:
        raise BenchError(f"The records are of different protocols ({', '.join(protocols)}): make one leaderboard for each.")
    _check_made_alike(records)
    _check_attacked_alike(records)
    nones = [record for record in records if record.method == NONE]
    if len(nones) != 1:
        raise BenchError(f'There are {len(nones)} records of the method "none": give exactly one, to compare with.')
    found: dict[str, Record] = {NONE: nones[0]}
    for record in records:
        if record.method != NONE and record.label in (*found, nones[0].label):
            raise BenchError(f'Two records are labelled "{record.label}": leave one out or give it another label.')
        found.setdefault(NONE if record.method == NONE else record.label, record)
    return dict(sorted(found.items()))


def outcome_frames(records: Sequence[Record]) -> dict[str, pd.DataFrame]:
    """Outcomes by label ("none" for the unedited model), as `bench.metrics` takes them."""
    return frames_of(records_by_key(records))


def frames_of(records: Mapping[str, Record]) -> dict[str, pd.DataFrame]:
    """Outcomes of each, names as categories of one vocabulary: 7 million of them are compared in seconds."""
    for record in records.values():
        _check(record)
    words = sorted({str(word) for record in records.values() for name in NAMES for word in set(record.outcomes[name]) if word is not None})
    return {key: _frame(record, words) for key, record in records.items()}


def seen_alike(first: Record, second: Record, kind: str | None = None) -> bool:
    """Whether the judge saw the same in every picture of two rows, or in those for targets of a kind."""
    return _seen(first, kind) == _seen(second, kind)


def _seen(record: Record, kind: str | None) -> list[list[Any]]:
    own = {target for target in set(record.outcomes["target"]) if kind is None or kind_of(target) == kind}
    places = [place for place, target in enumerate(record.outcomes["target"]) if target in own]
    return [[record.outcomes[name][place] for place in places] for name in OUTCOMES]


def _check_made_alike(records: Sequence[Record]) -> None:
    """BenchError for pictures of different models, or that different networks judged in one role; not all records have all roles."""
    made_with: dict[str, tuple[str, str]] = {}
    for record in records:
        for what, digest in {"model": record.provenance.get("model"), **record.provenance.get("judges", {})}.items():
            first, known = made_with.setdefault(what, (record.label, digest)) if digest else (record.label, digest)
            if known != digest:
                thing = "models" if what == "model" else f"networks for {what}"
                raise BenchError(f"{first} and {record.label} are of different {thing}: make one leaderboard for each.")


def _check_attacked_alike(records: Sequence[Record]) -> None:
    """BenchError for attacks of one name with other parameters, such as those of another budget."""
    made: dict[str, tuple[str, Any]] = {}
    for record in records:
        for name, own in record.attacks.items():
            config = {key: value for key, value in own["config"].items() if key != "file"}
            first, known = made.setdefault(name, (record.label, (own["version"], config)))
            if known != (own["version"], config):
                other = "another version" if known[0] != own["version"] else "other parameters (--attack-budget?)"
                raise BenchError(f"{name} on {record.label} is {other} than on {first}: make one leaderboard for each.")


def _check(record: Record) -> None:
    """BenchError for outcomes that make no table."""
    lacking = [name for name in OUTCOMES if name not in record.outcomes]
    lengths = {len(column) for column in record.outcomes.values()}
    if lacking or len(lengths) > 1:
        fault = f"lack {', '.join(lacking)}" if lacking else "are columns of different lengths"
        raise BenchError(f'The outcomes of the record "{record.label}" {fault}: make the record again.')
    for target in sorted({*record.missing, *(record.outcomes["target"] if record.method != NONE else ())}):
        try:
            Target.parse(target)
        except ValueError as error:
            raise BenchError(f'The record "{record.label}" has a wrong target ({error}): make the record again.') from error


def _frame(record: Record, words: Sequence[str]) -> pd.DataFrame:
    length = len(record.outcomes["target"])
    # By hand, as pandas takes three times as long; as objects, as strings of Arrow are slower to look up.
    code: dict[str | None, int] = {None: -1, **{word: place for place, word in enumerate(words)}}
    vocabulary = pd.CategoricalDtype(pd.Index(words, dtype=object))

    def named(column: Sequence[str | None]) -> pd.Categorical:
        codes = np.fromiter(map(code.__getitem__, column), np.int16, length)
        return pd.Categorical.from_codes(codes, dtype=vocabulary)

    own = {name: named(record.outcomes[name]) if name in NAMES else record.outcomes[name] for name in OUTCOMES}
    more = {name: np.array(record.outcomes[name], kind) for name, kind in MORE.items() if name in record.outcomes}
    return pd.DataFrame(own | more)

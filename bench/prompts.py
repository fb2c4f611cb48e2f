"""Files of adversarial prompts, such as a run's attack_prompts.csv. Free of torch."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.errors import BenchError

LEARNED = re.compile(r"<learned-[0-9a-f]{12}>")
"""A token that is in no vocabulary; `DiffusionModel.learned` has its embedding."""
NEEDED = ("target", "style", "object", "seed", "prompt")
_SUCH = "such as a run's attack_prompts.csv"


class StoredPrompt(NamedTuple):
    """A row of a file."""

    place: str
    """Where it stands, for whoever is to mend it."""
    prompt: str
    learned: dict[str, list[float]]
    """Embeddings of its learned tokens, by name."""
    seed_key: str
    """The noise key, where it was not the picture's own."""
    success: bool
    """Whether it succeeded where it was found."""


def read_prompts(path: Path | None) -> dict[tuple[str, str, str, str], list[StoredPrompt]]:
    """Rows by (concept, style, object, seed), of a target of two under both.

    BenchError for a file that is none, and for a row that cannot be tried.
    """
    if path is None:
        raise BenchError(f"replay needs a file: --attack-prompts FILE, {_SUCH}.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows = [(table.line_num, row) for row in table]
            _require(path, table.fieldnames or (), rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path} cannot be read ({error}): give a CSV file {_SUCH}.") from error
    found: dict[tuple[str, str, str, str], list[StoredPrompt]] = {}
    for line, row in rows:
        place = f"line {line} of {path}"
        empty = [name for name in NEEDED if name != "style" and not (row[name] or "").strip()]  # a picture may have no style
        if empty:
            raise BenchError(f"{place} has no {' and no '.join(empty)}: mend the row or leave it out.")
        if not row["seed"].isdecimal():
            raise BenchError(f'{place}: the seed "{row["seed"]}" is no whole number.')
        learned = _learned(place, row["prompt"], row.get("learned") or "")
        for concept in row["target"].split("+"):
            stored = StoredPrompt(place, row["prompt"], learned, row.get("seed_key") or "", row.get("success") == "True")
            found.setdefault((concept, row["style"] or "", row["object"], row["seed"]), []).append(stored)
    return found


def _require(path: Path, names: Sequence[str], rows: Sequence[object]) -> None:
    lacking = [name for name in NEEDED if name not in names]
    if lacking:
        raise BenchError(f"{path} lacks the columns {', '.join(lacking)}: give a CSV file {_SUCH}.")
    if not rows:
        raise BenchError(f"{path} has no prompt in it: give a CSV file {_SUCH}.")


def _learned(place: str, prompt: str, text: str) -> dict[str, list[float]]:
    """Of a row's JSON, `{"<learned-…>": [numbers]}`, which must have every learned token of its prompt."""
    try:
        found = {str(name): [float(value) for value in values] for name, values in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BenchError(f'{place}: "learned" is not {{"<learned-…>": [numbers]}} ({error}).') from error
    unknown = [name for name in LEARNED.findall(prompt) if name not in found]
    if unknown:
        raise BenchError(f'{place} has no embedding of {unknown[0]}: its column "learned" should be {{"{unknown[0]}": [numbers]}}.')
    return found

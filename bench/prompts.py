"""Files of adversarial prompts, such as a run's attack_prompts.csv. Free of torch."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from bench.errors import BenchError

LEARNED = re.compile(r"<learned-[0-9a-f]{12}>")
"""A token that is in no vocabulary; `DiffusionModel.learned` has its embedding."""
NEEDED = ("target", "style", "object", "seed", "prompt")


def read_prompts(path: Path | None) -> dict[tuple[str, str, str, str], list[dict[str, str]]]:
    """Rows by (target, style, object, seed). BenchError for a file that is none."""
    if path is None:
        raise BenchError("replay needs a file: --attack-prompts FILE, such as a run's attack_prompts.csv.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path} cannot be read ({error}): give a CSV file such as a run's attack_prompts.csv.") from error
    lacking = [name for name in NEEDED if not rows or name not in rows[0]]
    if lacking:
        raise BenchError(f"{path} lacks {', '.join(lacking)}: give a CSV file such as a run's attack_prompts.csv.")
    found: dict[tuple[str, str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["target"], row["style"], row["object"], row["seed"]), []).append(row)
    return found

"""Prompts that were found before, by whatever attack, tried on the victims of this run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field

from bench.api import AttackContext, BenchError, Candidate, Card, MethodConfig, PromptBank

NEEDED = ("target", "style", "object", "seed", "prompt")


class ReplayConfig(MethodConfig):
    """Parameters of a replay."""

    file: Path | None = Field(None, description="A CSV file such as a run's attack_prompts.csv.")
    digest: str = Field("", description="SHA-256 of the file, filled in.")
    tried: int = Field(100, ge=1, description="Pictures judged per goal at most.")


class Replay(PromptBank):
    """Tries on each goal the file's prompts for its target, style, object and seed, in the file's order, each once."""

    card = Card(title="Replay", paper="", bibtex="", supports=("style", "object"), control=True, notes="Prompts from a file.")
    Config = ReplayConfig
    budgets = {"quick": {"tried": 10}, "full": {}}
    access = "black-box"

    @property
    def judged(self) -> int:
        """All that are tried."""
        return int(self.config.tried)

    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """See `PromptBank.craft`."""
        rows = read_prompts(self.config.file)
        found: list[list[Candidate]] = []
        for g, goal in enumerate(context.goals):
            key = (goal.concept, goal.original.style, goal.original.object, str(goal.original.seed))
            own: dict[str, Candidate] = {}
            for row in rows.get(key, ()):
                learned = {name: torch.tensor(value) for name, value in json.loads(row.get("learned") or "{}").items()}
                own.setdefault(row["prompt"], Candidate(g, replace(goal.request, prompt=row["prompt"]), 0, learned))
            found.append(list(own.values())[: self.config.tried])
        return found


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

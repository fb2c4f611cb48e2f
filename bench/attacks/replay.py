"""Prompts that were found before, by whatever attack, tried on the victims of this run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field

from bench.api import AttackContext, Candidate, Card, MethodConfig, PromptBank, read_prompts


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

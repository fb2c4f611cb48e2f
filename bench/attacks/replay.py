"""Prompts that were found before, by whatever attack, tried on the victims of this run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field

from bench.api import (
    AttackContext,
    BenchError,
    Candidate,
    Card,
    DiffusionModel,
    GenerationRequest,
    MethodConfig,
    PromptBank,
    StoredPrompt,
    learned_name,
    read_prompts,
)  # fmt: skip


class ReplayConfig(MethodConfig):
    """Parameters of a replay."""

    file: Path | None = Field(None, description="A CSV file such as a run's attack_prompts.csv.")
    digest: str = Field("", description="SHA-256 of the file, filled in.")
    tried: int = Field(100, ge=1, description="Pictures judged per goal at most.")


class Replay(PromptBank):
    """Tries on each goal the file's prompts for its target, style, object and seed, each once: those that succeeded there first.

    With the noise that they were judged with. Goals that the file has nothing for are no outcome.
    """

    version = 2
    card = Card(title="Replay", paper="", bibtex="", supports=("style", "object"), control=True, notes="Prompts from a file.")
    Config = ReplayConfig
    budgets = {"quick": {"tried": 10}, "full": {}}
    access = "black-box"

    @property
    def judged(self) -> int:
        """All that are tried."""
        return int(self.config.tried)

    def check(self, model: DiffusionModel, places: Sequence[tuple[str, GenerationRequest]]) -> None:
        """See `Attack.check`: prompts that the model cannot take whole, and a file that has nothing for any picture."""
        rows = read_prompts(self.config.file)
        for row in (row for own in rows.values() for row in own):
            _check(model, row)
        if places and not any(_key(concept, request) in rows for target, request in places for concept in target.split("+")):
            first = ", ".join(_key(*places[0]))
            raise BenchError(f"{self.config.file} has no prompt for any picture of this run, the first of which is {first}.")

    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """See `PromptBank.craft`."""
        rows = read_prompts(self.config.file)
        found: list[list[Candidate]] = []
        for g, goal in enumerate(context.goals):
            own: dict[tuple[str, str], Candidate] = {}
            for row in sorted(rows.get(_key(goal.concept, goal.original), ()), key=lambda row: not row.success):
                learned = {name: torch.tensor(value) for name, value in row.learned.items()}
                request = replace(goal.request, prompt=row.prompt, noise_key=row.seed_key or goal.request.noise_key)
                own.setdefault((row.prompt, row.seed_key), Candidate(g, request, 0, learned))
            found.append(list(own.values())[: self.config.tried])
        return found


def _key(concept: str, request: GenerationRequest) -> tuple[str, str, str, str]:
    return concept, request.style, request.object, str(request.seed)


def _check(model: DiffusionModel, row: StoredPrompt) -> None:
    """BenchError, naming the row, for a prompt that is too long and for embeddings that are not what their names say."""
    width = model.text_encoder.get_input_embeddings().weight.shape[1]
    plain = row.prompt
    for name, values in row.learned.items():
        if len(values) != width:
            raise BenchError(f"{row.place}: {name} has {len(values)} numbers, this model's tokens have {width}.")
        if learned_name(torch.tensor(values)) != name:
            raise BenchError(f"{row.place}: the numbers of {name} are not those that it is named after; were they rounded?")
        plain = plain.replace(name, "a")
    count, most = len(model.tokenizer(plain).input_ids) - 2, model.max_tokens - 2
    if count > most:
        raise BenchError(f"{row.place} has a prompt of {count} tokens; the text encoder takes {most}.")

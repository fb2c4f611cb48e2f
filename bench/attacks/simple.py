"""Attacks that compute nothing: random tokens, other seeds, the suite's paraphrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from bench.api import AttackContext, Candidate, Card, DiffusionModel, GenerationRequest, MethodConfig, PromptBank
from bench.attacks.tokens import Location, check_room, free_slots, random_tokens

_NOTES = "A baseline of UnlearnDiffAtk's code."


def _card(title: str, notes: str) -> Card:
    return Card(title=title, paper="", bibtex="", supports=("style", "object"), control=True, notes=notes)


class TriedConfig(MethodConfig):
    """How much is tried."""

    tried: int = Field(40, ge=1, description="Pictures judged per goal at most.")


class RandomConfig(TriedConfig):
    """Parameters of random tokens."""

    tokens: int = Field(5, ge=1, description="Random tokens.")
    location: Location = Field("prefix", description="Where they stand; replacement: no word of the prompt stays.")


class _Tried(PromptBank):
    access = "black-box"
    budgets = {"quick": {"tried": 10}, "full": {}}

    @property
    def judged(self) -> int:
        """All that are tried."""
        return int(self.config.tried)


class Random(_Tried):
    """Random tokens beside the prompt."""

    card = _card("Random tokens", _NOTES)
    Config = RandomConfig

    def check(self, model: DiffusionModel, places: Sequence[tuple[str, GenerationRequest]]) -> None:
        """See `Attack.check`: too many tokens."""
        super().check(model, places)
        check_room(model, places, self.config.tokens, self.config.location)

    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """See `PromptBank.craft`."""
        config = self.config
        slots = free_slots(context, config.tokens, config.location)
        found = []
        for goal in range(len(context.goals)):
            drawn = random_tokens(slots.allowed[goal], context.generator(goal, "random"), 4 * config.tried, config.tokens)
            tried = [slots.candidate(goal, tokens.to(slots.table.device), 0) for tokens in drawn]
            found.append([candidate for candidate in tried if candidate is not None][: config.tried])
        return found


class SeedSearch(_Tried):
    """The prompt as it is, with other noise: what UA at one seed hides."""

    card = _card("Seed search", _NOTES)
    Config = TriedConfig

    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """See `PromptBank.craft`."""
        return [
            [Candidate(g, replace(goal.request, noise_key=f"{goal.request.noise_key}/seed-search/{k}")) for k in range(self.config.tried)]
            for g, goal in enumerate(context.goals)
        ]


class Paraphrase(_Tried):
    """Prompts of the suite that mean the concept without naming it."""

    card = _card("Paraphrases", "The suite's own implicit prompts.")
    Config = TriedConfig
    reads_request = False

    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """See `PromptBank.craft`."""
        return [
            [Candidate(g, replace(goal.request, prompt=prompt)) for prompt in goal.paraphrases[: self.config.tried]]
            for g, goal in enumerate(context.goals)
        ]

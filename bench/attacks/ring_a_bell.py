"""Ring-A-Bell: prompts whose text states are those of the original plus the concept's direction, by a genetic algorithm."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, Candidate, Card, MethodConfig, PromptBank
from bench.attacks.tokens import Slots, random_tokens

ENCODED = 512
"""Prompts encoded at once."""


class RingABellConfig(MethodConfig):
    """Parameters of Ring-A-Bell."""

    tokens: int = Field(16, ge=2, description="K, the length of the prompt.")
    strength: float = Field(3.0, description="η, how much of the concept's direction is added.")
    population: int = Field(200, ge=4, description="Prompts of a generation.")
    generations: int = Field(3000, ge=1, description="Of the genetic algorithm.")
    crossover: float = Field(0.5, ge=0, le=1, description="Share of children that two parents are cut together for.")
    mutation: float = Field(0.25, ge=0, le=1, description="Share of children with another token.")
    tried: int = Field(10, ge=1, description="Best prompts of the last generation that are judged.")


class RingABell(PromptBank):
    """Prompts whose text states are the original's plus the concept's direction, by a genetic algorithm.

    `min ‖f(δ) − (f(prompt) + η ĉ)‖²` over prompts δ, with f the text states and ĉ their mean difference between prompts that name the
    concept and the same with its anchor. No diffusion model is asked, so that the prompts serve for all.
    """

    card = Card(
        title="Ring-A-Bell", paper="arXiv:2310.10012", supports=("style", "object"),
        bibtex="@inproceedings{tsai2024ringabell,\n  title = {Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion"
        " Models?},\n  author = {Tsai, Yu-Lin and Hsu, Chia-Yi and Xie, Chulin and Lin, Chih-Hsun and Chen, Jia-You and Li, Bo and Chen,"
        " Pin-Yu and Yu, Chia-Mu and Huang, Chun-Ying},\n  booktitle = {ICLR},\n  year = {2024},\n}",
    )  # fmt: skip
    Config = RingABellConfig
    budgets = {"quick": {"population": 100, "generations": 200}, "full": {}}
    access = "text-encoder"
    reads_request = False

    @property
    def judged(self) -> int:
        """The best prompts."""
        return int(self.config.tried)

    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """See `PromptBank.craft`."""
        count = min(self.config.tokens, context.model.max_tokens - 2)
        slots = Slots(context, [""] * len(context.goals), [[0] * count] * len(context.goals))
        found = []
        for goal in range(len(context.goals)):
            ranked = self._evolve(context, slots, goal)
            tried = [slots.candidate(goal, tokens, 0) for tokens in ranked]
            found.append([candidate for candidate in tried if candidate is not None][: self.config.tried])
            context.progress((goal + 1) / len(context.goals), "prompts")
        return found

    def _evolve(self, context: AttackContext, slots: Slots, goal: int) -> Tensor:
        """int64 [population, K], best first, each once."""
        config, generator, own = self.config, context.generator(goal, "ring-a-bell"), context.goals[goal]
        original = context.model.text_states([own.original.prompt])[0]
        wanted = original + config.strength * direction(context, own.concept)
        people = random_tokens(slots.allowed[goal], generator, config.population, slots.free.shape[1])
        half, k = config.population // 2, people.shape[1]
        for _ in range(config.generations):
            best = people[self._fitness(context, slots, goal, people, wanted).argsort()[:half]]
            parents = torch.randint(len(best), (2, config.population - half), generator=generator)
            cut = torch.randint(1, k, (config.population - half, 1), generator=generator)
            crossed = torch.rand(config.population - half, 1, generator=generator) < config.crossover
            children = torch.where(crossed & (torch.arange(k) >= cut), best[parents[1]], best[parents[0]])
            place = torch.randint(k, (len(children), 1), generator=generator)
            mutant = torch.rand(len(children), 1, generator=generator) < config.mutation
            drawn = random_tokens(slots.allowed[goal], generator, len(children), 1)
            people = torch.cat([best, torch.where(mutant & (torch.arange(k) == place), drawn, children)])
        order = self._fitness(context, slots, goal, people, wanted).argsort()
        return torch.tensor(list(dict.fromkeys(map(tuple, people[order].tolist()))))

    @torch.no_grad()
    def _fitness(self, context: AttackContext, slots: Slots, goal: int, people: Tensor, wanted: Tensor) -> Tensor:
        """float32 [n], smaller is better."""
        device = slots.table.device
        found = []
        for part in people.to(device).split(ENCODED):
            ids = slots.filled(torch.full((len(part),), goal, device=device), part)
            states = context.model.text_encoder(ids).last_hidden_state
            found.append((states - wanted).square().sum((1, 2)))
        return torch.cat(found).cpu()


def direction(context: AttackContext, concept: str) -> Tensor:
    """float32 [L, D], ĉ: over the goals of a concept, how its name changes the states of their prompts."""
    pairs = [(goal.original.prompt, goal.anchored) for goal in context.goals if goal.concept == concept]
    named, anchored = (context.model.text_states(texts) for texts in zip(*pairs, strict=True))
    return (named - anchored).mean(0)

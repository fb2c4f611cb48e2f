"""Ring-A-Bell: prompts whose text states are those of the original plus the concept's direction, by a genetic algorithm."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, Card, DiffusionModel, Goal
from bench.attacks.free_prompts import FreePrompts, FreePromptsConfig, encoded
from bench.attacks.tokens import Slots, random_tokens


class RingABellConfig(FreePromptsConfig):
    """Parameters of Ring-A-Bell."""

    tokens: int = Field(16, ge=2, description="K, the length of the prompt.")
    strength: float = Field(3.0, description="η, how much of the concept's direction is added.")
    population: int = Field(200, ge=4, description="Prompts of a generation.")
    generations: int = Field(3000, ge=1, description="Of the genetic algorithm.")
    crossover: float = Field(0.5, ge=0, le=1, description="Share of children that two parents are cut together for.")
    mutation: float = Field(0.25, ge=0, le=1, description="Share of children with another token.")


class RingABell(FreePrompts):
    """Prompts whose text states are the original's plus the concept's direction, by a genetic algorithm.

    `min ‖f(δ) − (f(prompt) + η ĉ)‖²` over prompts δ, with f the text states and ĉ their mean difference between prompts that name the
    concept and the same with its anchor. No diffusion model is asked, so that the prompts serve for all.
    """

    version = 2
    card = Card(
        title="Ring-A-Bell", paper="arXiv:2310.10012", supports=("style", "object"),
        bibtex="@inproceedings{tsai2024ringabell,\n  title = {Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion"
        " Models?},\n  author = {Tsai, Yu-Lin and Hsu, Chia-Yi and Xie, Chulin and Lin, Chih-Hsun and Chen, Jia-You and Li, Bo and Chen,"
        " Pin-Yu and Yu, Chia-Mu and Huang, Chun-Ying},\n  booktitle = {ICLR},\n  year = {2024},\n}",
    )  # fmt: skip
    Config = RingABellConfig
    budgets = {"quick": {"population": 100, "generations": 200}, "full": {}}

    def ranked(self, context: AttackContext, slots: Slots, goal: int) -> Tensor:
        """int64 [population, K], best first, each once."""
        config, generator, own = self.config, context.generator(goal, "ring-a-bell"), context.goals[goal]
        original = context.model.text_states([own.original.prompt])[0]
        wanted = original + config.strength * direction(context.model, own)
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

    def _fitness(self, context: AttackContext, slots: Slots, goal: int, people: Tensor, wanted: Tensor) -> Tensor:
        """float32 [n], smaller is better."""
        every = encoded(context, slots, goal, people)
        return torch.cat([(out.last_hidden_state - wanted).square().sum((1, 2)) for out in every]).cpu()


def direction(model: DiffusionModel, goal: Goal) -> Tensor:
    """float32 [L, D], ĉ: over the suite's prompts that name a goal's concept, how its name changes their states."""
    named, anchored = (model.text_states(texts) for texts in zip(*goal.pairs, strict=True))
    return (named - anchored).mean(0)

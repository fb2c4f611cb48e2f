"""What an attack is: it looks for prompts, or learned tokens, under which an erased model shows the concept again.

Attacks propose, the harness judges: `WhiteBox.search` is a generator that is sent, for every candidate that it yields, whether the
concept was seen, so that what is judged is counted in one place and many goals advance together. Budgets are per goal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from bench.config import BudgetName
from bench.diffusion.model import DiffusionModel
from bench.diffusion.noise import noise_seed
from bench.diffusion.victim import Victim
from bench.errors import BenchError
from bench.interfaces import MethodConfig
from bench.types import Card, GenerationRequest


@dataclass(frozen=True)
class Goal:
    """A picture that the erased concept is to come back in."""

    request: GenerationRequest
    """What is attacked. Attacked pictures keep its noise."""
    original: GenerationRequest
    """The same, its prompt naming the concept; another than `request` only where the unedited model is attacked, to see what an attack
    can: its prompt then names the concept's anchor."""
    names: tuple[str, ...]
    """What the suite calls the concept in prompts."""
    forbidden: tuple[str, ...]
    """Words that a perturbation may not spell: its names and synonyms."""
    paraphrases: tuple[str, ...] = ()
    """Prompts of the suite that mean the same picture without naming the concept."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Every evaluation prompt that names the concept, and the same with its anchor: whatever else is attacked, the same."""
    concept: str = ""
    """Such as style:neon."""


class Candidate(NamedTuple):
    """A picture to sample and judge."""

    goal: int
    request: GenerationRequest
    """`Goal.request` with another prompt (or, where an attack is of noise, another seed)."""
    gradient_steps: int = 0
    """How many the goal has had by now."""
    learned: Mapping[str, Tensor] = {}
    """Embeddings of the prompt's learned tokens, by name."""


Search: TypeAlias = Generator[list[Candidate], Sequence[bool], None]
"""Yields candidates to judge and is sent whether each showed the concept."""


@dataclass(frozen=True)
class States:
    """Where the unedited model's predictions are known: per goal P noisy pictures that show the concept."""

    noisy: Tensor
    """float32 [n, P, 4, h, w]."""
    timesteps: Tensor
    """int64 [P], on the CPU."""
    predictions: Tensor
    """float32 [n, P, 4, h, w], under `Goal.original`'s prompt."""


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use."""

    model: DiffusionModel
    """For prompt banks the unedited model."""
    goals: Sequence[Goal]
    targets: Tensor
    """float32 [n, 4, h, w], latents of the unedited model's pictures of `Goal.original`."""
    victim: Victim | None = None
    """Its rows are the goals'. None for prompt banks, which see no victim."""
    states: States | None = None
    vocabulary: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool))
    """bool [V]: tokens that the model knows and that are no marks."""
    spelled: Sequence[str] = ()
    """What each token spells, [V]."""
    progress: Callable[[float, str], None] = lambda share, text: None

    def generator(self, goal: int, purpose: str) -> torch.Generator:
        """On the CPU; a function of the goal's picture and the purpose, so that neighbours cannot matter."""
        own = self.goals[goal].original
        return torch.Generator().manual_seed(noise_seed(own.seed, f"{own.noise_key}\nattack {purpose}"))

    def allowed(self) -> Tensor:
        """Bool [n, V]: of each goal the tokens that its perturbation may have; none that spells a forbidden word by itself."""
        found = self.vocabulary.repeat(len(self.goals), 1)
        for g, goal in enumerate(self.goals):
            words = [word.lower() for word in goal.forbidden]
            found[g, [k for k, text in enumerate(self.spelled) if any(word in text for word in words)]] = False
        return found

    def attacked(self) -> Victim:
        """The victim. BenchError where there is none."""
        if self.victim is None:
            raise BenchError("A prompt bank has no victim.")
        return self.victim

    def candidate(self, goal: int, prompt: str, perturbation: str, steps: int = 0) -> Candidate | None:
        """A prompt to judge; None where its perturbation spells a forbidden word."""
        own = self.goals[goal]
        spelled = perturbation.lower()
        if any(word.lower() in spelled or word.lower() in spelled.replace(" ", "") for word in own.forbidden):
            return None
        return Candidate(goal, replace(own.request, prompt=prompt), steps)


class Attack(ABC):
    """Subclass `WhiteBox` or `PromptBank`."""

    version: ClassVar[int] = 1
    card: ClassVar[Card]
    Config: ClassVar[type[MethodConfig]]
    budgets: ClassVar[Mapping[BudgetName, Mapping[str, Any]]]
    """Parameters of the two budgets: `quick`, at most 200 gradient steps and 10 judged pictures, and `full`, the published one."""
    access: ClassVar[Literal["white-box", "text-encoder", "black-box"]]

    def __init__(self, config: MethodConfig) -> None:
        self.config: Any = config

    @property
    @abstractmethod
    def judged(self) -> int:
        """How many pictures of a goal it has judged at most."""

    @property
    def gradient_steps(self) -> int:
        """How many of the victim's losses it takes per goal."""
        return 0

    @property
    def wants_states(self) -> int:
        """How many `States` it needs per goal."""
        return 0

    def check(self, model: DiffusionModel, places: Sequence[tuple[str, GenerationRequest]]) -> None:
        """BenchError for what it cannot do for this model on any of these (target, picture), before anything is sampled."""
        if self.access != "black-box" and model.text_encoder_2 is not None:
            raise BenchError(
                f"This model has two text encoders, {self.card.title} needs a model with one: leave it out. Attacks by prompts alone"
                " (random, seed-search, paraphrase, --attack-prompts) go on."
            )


class WhiteBox(Attack):
    """Its prompts belong to the victim that they were found on."""

    access = "white-box"

    @abstractmethod
    def search(self, context: AttackContext) -> Search:
        """Yields what to judge, is sent whether each showed the concept. Goals that were reached are left alone."""


class PromptBank(Attack):
    """Its prompts are crafted once, without a victim, and tried on all of them."""

    reads_request: ClassVar[bool] = True
    """Whether what it makes depends on `Goal.request`, or on `Goal.original` alone."""

    @abstractmethod
    def craft(self, context: AttackContext) -> list[list[Candidate]]:
        """For each goal what to try, in order, at most `judged`."""

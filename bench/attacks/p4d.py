"""P4D: hard prompts whose prediction by the erased model is the unedited model's of the original prompt (PEZ's projection)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, BenchError, Card, DiffusionModel, GenerationRequest, Search, WhiteBox
from bench.attacks.descent import Adam, TurnsConfig
from bench.attacks.tokens import Slots, check_room, free_slots, nearest_tokens, random_tokens, words_of
from bench.attacks.unlearndiffatk import judged


class P4DConfig(TurnsConfig):
    """Parameters of P4D."""

    iterations: int = Field(3000, ge=1, description="Gradient steps.")
    every: int = Field(50, ge=1, description="Gradient steps between judged pictures.")
    learning_rate: float = Field(0.1, gt=0, description="Of AdamW.")
    weight_decay: float = Field(0.1, ge=0, description="Of AdamW.")
    states: int = Field(50, ge=1, description="Noisy pictures per goal whose predictions are matched, one drawn each step.")


class P4DNConfig(P4DConfig):
    """Parameters of P4D-N."""

    tokens: int = Field(16, ge=1, description="N, the length of the prompt.")


class P4DKConfig(P4DConfig):
    """Parameters of P4D-K."""

    apart: int = Field(3, ge=1, description="K: a free token before every K words of the prompt.")


class _P4D(WhiteBox):
    """What P4D-N and P4D-K share."""

    card = Card(
        title="P4D", paper="arXiv:2309.06135", supports=("style", "object"),
        bibtex="@inproceedings{chin2024prompting,\n  title = {Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding"
        " Problematic Prompts},\n  author = {Chin, Zhi-Yi and Jiang, Chieh-Ming and Huang, Ching-Chun and Chen, Pin-Yu and Chiu,"
        " Wei-Chen},\n  booktitle = {ICML},\n  year = {2024},\n}",
    )  # fmt: skip
    version = 2
    budgets = {"quick": {"iterations": 200, "every": 20, "states": 20}, "full": {}}

    @property
    def judged(self) -> int:
        """One every so many gradient steps."""
        return int(self.config.iterations // self.config.every)

    @property
    def gradient_steps(self) -> int:
        """All iterations."""
        return int(self.config.iterations)

    @property
    def wants_states(self) -> int:
        """See `Attack.wants_states`."""
        return int(self.config.states)

    @abstractmethod
    def slots(self, context: AttackContext) -> Slots:
        """The free tokens of each goal."""

    def search(self, context: AttackContext) -> Search:
        """See `WhiteBox.search`."""
        config, slots = self.config, self.slots(context)
        count = slots.free.shape[1]
        name = type(self).__name__
        left = torch.arange(len(context.goals))
        generators = [context.generator(goal, name) for goal in left.tolist()]
        drawn = torch.stack([torch.randint(config.states, (config.iterations,), generator=own) for own in generators])
        tokens = torch.stack([random_tokens(slots.allowed[g], own, count) for g, own in enumerate(generators)]).to(slots.table.device)
        embeds = slots.table[tokens]
        adam = Adam(embeds)
        for step in range(config.iterations):
            gradient = self._gradient(context, slots, left, tokens[left], drawn[left, step])
            kept = embeds[left] * (1 - config.learning_rate * config.weight_decay)
            embeds[left] = kept - adam.step(left, gradient, config.learning_rate)
            tokens[left] = nearest_tokens(embeds[left], slots.table, slots.allowed[left][:, None])
            context.progress((step + 1) / config.iterations, f"{len(left)} goals left")
            if (step + 1) % config.every == 0:
                left = yield from judged(left, [slots.candidate(int(g), tokens[g], step + 1) for g in left])
                if not len(left):
                    return

    def _gradient(self, context: AttackContext, slots: Slots, left: Tensor, tokens: Tensor, drawn: Tensor) -> Tensor:
        """float32 [n, k, d], of the loss to the tokens' embeddings."""
        states = context.states
        if states is None:
            raise BenchError("P4D needs predictions of the unedited model.")
        hard = slots.table[tokens].requires_grad_()
        texts, noisy, timesteps = slots.soft(left, tokens, hard), states.noisy[left, drawn], states.timesteps[drawn]
        error = context.attacked().predict(left.tolist(), texts, noisy, timesteps) - states.predictions[left, drawn]
        (gradient,) = torch.autograd.grad(error.square().flatten(1).mean(1).sum(), hard)
        return gradient


class P4DN(_P4D):
    """N vocabulary tokens under which the erased model predicts what the unedited one does of the prompt.

    See P4D-K; no word of the prompt stays.
    """

    Config = P4DNConfig

    def check(self, model: DiffusionModel, places: Sequence[tuple[str, GenerationRequest]]) -> None:
        """See `Attack.check`: too many tokens."""
        super().check(model, places)
        check_room(model, places, self.config.tokens, "replacement")

    def slots(self, context: AttackContext) -> Slots:
        """No word of the prompt stays."""
        return free_slots(context, self.config.tokens, "replacement")


class P4DK(_P4D):
    """The prompt with a free token before every K words, under which the erased model predicts what the unedited one does.

    `min ‖ε_θ(x_t, t, δ) − ε_θ0(x_t, t, prompt)‖²`. Continuous embeddings move by the gradient at their nearest tokens (by cosine).
    What is judged is the prompt of that time: losses of several cannot be compared, as each is at a timestep of its own.
    """

    Config = P4DKConfig

    def slots(self, context: AttackContext) -> Slots:
        """As many as a goal's own prompt has room for."""
        prompts = [goal.request.prompt for goal in context.goals]
        return Slots(context, prompts, [range(0, len(words_of(context.model, prompt)), self.config.apart) for prompt in prompts])

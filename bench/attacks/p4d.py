"""P4D: hard prompts whose prediction by the erased model is the unedited model's of the original prompt (PEZ's projection)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, BenchError, Card, MethodConfig, Search, WhiteBox
from bench.attacks.descent import Adam
from bench.attacks.free_prompts import free_slots
from bench.attacks.tokens import Slots, nearest_tokens, random_tokens, words_of
from bench.attacks.unlearndiffatk import judged


class P4DConfig(MethodConfig):
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
        embeds = torch.stack(
            [slots.table[random_tokens(slots.allowed[g], own, count).to(slots.table.device)] for g, own in enumerate(generators)]
        )
        drawn = torch.stack([torch.randint(config.states, (config.iterations,), generator=own) for own in generators])
        adam = Adam(embeds)
        best = _Best(len(left), count, embeds.device)
        for step in range(config.iterations):
            tokens = nearest_tokens(embeds[left], slots.table, slots.allowed[left][:, None])
            loss, gradient = self._loss(context, slots, left, tokens, drawn[left, step])
            best.keep(left, tokens, loss)
            kept = embeds[left] * (1 - config.learning_rate * config.weight_decay)
            embeds[left] = kept - adam.step(left, gradient, config.learning_rate)
            context.progress((step + 1) / config.iterations, f"{len(left)} goals left")
            if (step + 1) % config.every == 0:
                found = [slots.candidate(int(g), best.tokens[g], step + 1) for g in left]
                left = yield from judged(left, found)
                best.forget()
                if not len(left):
                    return

    def _loss(self, context: AttackContext, slots: Slots, left: Tensor, tokens: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n], and its gradient to the tokens' embeddings [n, k, d]."""
        states = context.states
        if states is None:
            raise BenchError("P4D needs predictions of the unedited model.")
        hard = slots.table[tokens].requires_grad_()
        texts, noisy, timesteps = slots.soft(left, tokens, hard), states.noisy[left, drawn], states.timesteps[drawn]
        error = context.attacked().predict(left.tolist(), texts, noisy, timesteps) - states.predictions[left, drawn]
        loss = error.square().flatten(1).mean(1)
        (gradient,) = torch.autograd.grad(loss.sum(), hard)
        return loss.detach(), gradient


class _Best:
    """Per goal the tokens with the smallest loss since the last picture."""

    def __init__(self, goals: int, count: int, device: torch.device) -> None:
        self.loss = torch.full((goals,), torch.inf, device=device)
        self.tokens = torch.zeros(goals, count, dtype=torch.int64, device=device)

    def keep(self, left: Tensor, tokens: Tensor, loss: Tensor) -> None:
        """Those that are better."""
        better = loss < self.loss[left]
        self.tokens[left] = torch.where(better[:, None], tokens, self.tokens[left])
        self.loss[left] = torch.where(better, loss, self.loss[left])

    def forget(self) -> None:
        """Begin anew."""
        self.loss.fill_(torch.inf)


class P4DN(_P4D):
    """N vocabulary tokens under which the erased model predicts what the unedited one does of the prompt.

    See P4D-K; no word of the prompt stays.
    """

    Config = P4DNConfig

    def slots(self, context: AttackContext) -> Slots:
        """No word of the prompt stays."""
        return free_slots(context, self.config.tokens)


class P4DK(_P4D):
    """The prompt with a free token before every K words, under which the erased model predicts what the unedited one does.

    `min ‖ε_θ(x_t, t, δ) − ε_θ0(x_t, t, prompt)‖²`. Continuous embeddings move by the gradient at their nearest tokens (by cosine).
    Of the prompts between two judged pictures the one with the smallest loss is judged; the authors choose by a CLIP likeness.
    """

    Config = P4DKConfig

    def slots(self, context: AttackContext) -> Slots:
        """Goals whose prompts are longer than the shortest have no more free tokens than that."""
        prompts = [goal.request.prompt for goal in context.goals]
        places = [list(range(0, len(words_of(context.model, prompt)), self.config.apart)) for prompt in prompts]
        fewest = min(map(len, places))
        return Slots(context, prompts, [own[:fewest] for own in places])

"""CCE (concept inversion): a new token is learned from pictures of the concept, by the erased model itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, Candidate, Card, Search, WhiteBox, learned_name, written
from bench.attacks.descent import Adam, TurnsConfig
from bench.attacks.tokens import Slots, words_of
from bench.attacks.unlearndiffatk import denoising_loss, judged


class CCEConfig(TurnsConfig):
    """Parameters of CCE."""

    iterations: int = Field(5000, ge=1, description="Gradient steps.")
    every: int = Field(500, ge=1, description="Gradient steps between judged pictures.")
    learning_rate: float = Field(5e-3, gt=0, description="Of Adam.")
    timesteps: int = Field(50, ge=1, description="Of the loss, one drawn each step.")


class CCE(WhiteBox):
    """A new token in place of the concept's name, learned by the erased model from pictures of the concept.

    `min ‖ε − ε_θ(x_t, t, prompt with v for the name)‖²` over one embedding v per erasure and concept, on the pictures of all its goals.
    It begins as the mean of the vocabulary. Learned tokens are no words: this tells what the model still can, not what users can type.
    """

    version = 2
    card = Card(
        title="CCE", paper="arXiv:2308.01508", supports=("style", "object"),
        bibtex="@inproceedings{pham2024circumventing,\n  title = {Circumventing Concept Erasure Methods For Text-to-Image Generative"
        " Models},\n  author = {Pham, Minh and Marshall, Kelly O. and Cohen, Niv and Mittal, Govind and Hegde, Chinmay},\n"
        "  booktitle = {ICLR},\n  year = {2024},\n}",
    )  # fmt: skip
    Config = CCEConfig
    budgets = {"quick": {"iterations": 200, "every": 20, "learning_rate": 0.02}, "full": {}}

    @property
    def judged(self) -> int:
        """One every so many gradient steps."""
        return int(self.config.iterations // self.config.every)

    @property
    def gradient_steps(self) -> int:
        """All iterations."""
        return int(self.config.iterations)

    def search(self, context: AttackContext) -> Search:
        """See `WhiteBox.search`."""
        config, model = self.config, context.model
        prompts = [_with_hole(goal.original.prompt, goal.names) for goal in context.goals]
        halves = [words_of(model, prompt.split(HOLE)[0]) for prompt in prompts]
        slots = Slots(context, [prompt.replace(HOLE, " ") for prompt in prompts], [[len(before)] for before in halves])
        victims = [(id(row.erasure), goal.concept) for row, goal in zip(context.attacked().rows, context.goals, strict=True)]
        order = {victim: k for k, victim in enumerate(dict.fromkeys(victims))}
        owner, device = torch.tensor([order[victim] for victim in victims]), slots.table.device
        values = slots.table[context.vocabulary.to(device)].mean(0).expand(len(order), -1).clone()
        adam, every = Adam(values), torch.arange(len(order))
        blank = torch.full((len(prompts), 1), model.blank_token, device=device)
        times = context.attacked().spread(config.timesteps)
        # One timestep for all: of the goals of a concept, a step is one batch of its pictures.
        drawn = torch.randint(config.timesteps, (config.iterations,), generator=torch.Generator().manual_seed(0)).tolist()
        left = torch.arange(len(prompts))
        generators = [context.generator(goal, "cce") for goal in left.tolist()]
        for step, place in enumerate(drawn):
            # A token goes on learning from all of its pictures while any of them is left.
            taught = torch.isin(owner, owner[left]).nonzero()[:, 0]
            noise = torch.stack([torch.randn(model.latent_shape, generator=generators[g]) for g in taught.tolist()]).to(device)
            leaf = values.clone().requires_grad_()
            texts = slots.soft(taught, blank[taught], leaf[owner[taught]][:, None])
            loss = denoising_loss(context, taught, texts, noise, times[place], place)
            counts = torch.bincount(owner[taught], minlength=len(order)).clamp(min=1)
            (gradient,) = torch.autograd.grad((loss / counts[owner[taught]].to(device)).sum(), leaf)
            values = values - adam.step(every, gradient, config.learning_rate)
            context.progress((step + 1) / config.iterations, f"{len(left)} goals left")
            if (step + 1) % config.every == 0:
                found = [_candidate(context, int(g), prompts[int(g)], values[owner[g]], step + 1) for g in left]
                left = yield from judged(left, found)
                if not len(left):
                    return


HOLE = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Where the learned token goes; no tokenizer sees it."""


def _with_hole(prompt: str, names: Sequence[str]) -> str:
    """The prompt with a hole where it names the concept; behind it, where it does not."""
    for name in sorted(names, key=len, reverse=True):
        if re.search(re.escape(name), prompt, re.IGNORECASE):
            return re.sub(re.escape(name), HOLE, prompt, count=1, flags=re.IGNORECASE)
    return f"{prompt} {HOLE}"


def _candidate(context: AttackContext, goal: int, prompt: str, value: Tensor, steps: int) -> Candidate:
    value = written(value)
    name = learned_name(value)
    request = replace(context.goals[goal].request, prompt=prompt.replace(HOLE, name))
    return Candidate(goal, request, steps, {name: value})

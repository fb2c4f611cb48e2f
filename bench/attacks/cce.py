"""CCE (concept inversion): a new token is learned from pictures of the concept, by the erased model itself."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, Candidate, Card, MethodConfig, SoftText, WhiteBox, learned_name
from bench.attacks.tokens import timesteps_of
from bench.attacks.unlearndiffatk import TRAINED, denoising_loss, judged

BETAS, EPSILON = (0.9, 0.999), 1e-8


class CCEConfig(MethodConfig):
    """Parameters of CCE."""

    iterations: int = Field(5000, ge=1, description="Gradient steps.")
    every: int = Field(500, ge=1, description="Gradient steps between judged pictures.")
    learning_rate: float = Field(5e-3, gt=0, description="Of Adam.")
    timesteps: int = Field(50, ge=1, description="Of the loss, one drawn each step.")


class CCE(WhiteBox):
    """A new token in place of the concept's name, learned by the erased model from pictures of the concept.

    `min ‖ε − ε_θ(x_t, t, prompt with v for the name)‖²` over one embedding v per concept, on the pictures of all its goals. It begins
    as the mean of the vocabulary. Learned tokens are no words: this tells what the model still can, not what users can type.
    """

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

    def search(self, context: AttackContext) -> Generator[list[Candidate], Sequence[bool], None]:
        """See `WhiteBox.search`."""
        config, model = self.config, context.model
        table = model.text_encoder.get_input_embeddings().weight.detach()
        concepts = list(dict.fromkeys(goal.concept for goal in context.goals))
        owner = torch.tensor([concepts.index(goal.concept) for goal in context.goals], device=table.device)
        allowed = context.vocabulary.to(table.device)
        values = table[allowed].mean(0).expand(len(concepts), -1).clone()
        moments = torch.zeros(2, *values.shape, device=table.device)
        prompts = [_with_token(goal.original.prompt, goal.names) for goal in context.goals]
        times = timesteps_of(config.timesteps, TRAINED)
        # One timestep for all: of the goals of a concept, a step is one batch of its pictures.
        order = torch.randint(config.timesteps, (config.iterations,), generator=torch.Generator().manual_seed(0)).tolist()
        left = torch.arange(len(prompts), device=table.device)
        generators = [context.generator(goal, "cce") for goal in left.tolist()]
        for step, place in enumerate(order):
            noise = torch.stack([torch.randn(model.latent_shape, generator=generators[g]) for g in left.tolist()]).to(table.device)
            leaf = values.clone().requires_grad_()
            texts = [_text(context, prompts[g], leaf[owner[g]]) for g in left.tolist()]
            loss = denoising_loss(context, left, texts, noise, times[place], place)
            counts = torch.bincount(owner[left], minlength=len(concepts)).clamp(min=1)
            (gradient,) = torch.autograd.grad((loss / counts[owner[left]]).sum(), leaf)
            first = moments[0] = BETAS[0] * moments[0] + (1 - BETAS[0]) * gradient
            second = moments[1] = BETAS[1] * moments[1] + (1 - BETAS[1]) * gradient.square()
            first, second = first / (1 - BETAS[0] ** (step + 1)), second / (1 - BETAS[1] ** (step + 1))
            values = values - config.learning_rate * first / (second.sqrt() + EPSILON)
            context.progress((step + 1) / config.iterations, f"{len(left)} goals left")
            if (step + 1) % config.every == 0:
                found = [_candidate(context, int(g), prompts[int(g)], values[owner[g]], step + 1) for g in left]
                left = yield from judged(left, found)
                if not len(left):
                    return


_HOLE = "<learned-000000000000>"


def _with_token(prompt: str, names: Sequence[str]) -> str:
    """The prompt with a hole where it names the concept; beside it, where it does not."""
    for name in sorted(names, key=len, reverse=True):
        if re.search(re.escape(name), prompt, re.IGNORECASE):
            return re.sub(re.escape(name), _HOLE, prompt, count=1, flags=re.IGNORECASE)
    return f"{prompt} {_HOLE}"


def _text(context: AttackContext, prompt: str, value: Tensor) -> SoftText:
    context.model.learned[_HOLE] = value
    return context.model.soft(prompt)


def _candidate(context: AttackContext, goal: int, prompt: str, value: Tensor, steps: int) -> Candidate:
    name = learned_name(value)
    request = replace(context.goals[goal].request, prompt=prompt.replace(_HOLE, name))
    return Candidate(goal, request, steps, {name: value.detach().cpu()})

"""MMA-Diffusion's text attack: prompts whose pooled text is the original's, by greedy coordinate gradient on the text encoder."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, Card
from bench.attacks.free_prompts import FreePrompts, FreePromptsConfig, encoded
from bench.attacks.tokens import Slots, random_tokens


class MMAConfig(FreePromptsConfig):
    """Parameters of MMA-Diffusion's text attack."""

    tokens: int = Field(20, ge=1, description="Length of the prompt; as many as fit where that is fewer.")
    iterations: int = Field(1000, ge=1, description="Greedy steps.")
    candidates: int = Field(512, ge=1, description="Exchanges of one token that are tried at each step.")
    top: int = Field(256, ge=1, description="Tokens per place, by gradient, that exchanges are drawn from.")


class MMA(FreePrompts):
    """Prompts whose pooled text is the original's, by greedy coordinate gradient on the text encoder.

    `min 1 − cos(pooled(δ), pooled(prompt))` over prompts δ without the concept's names: the one-hot gradient proposes exchanges of
    single tokens (GCG), the best of those tried is taken.
    """

    card = Card(
        title="MMA-Diffusion", paper="arXiv:2311.17516", supports=("style", "object"),
        bibtex="@inproceedings{yang2024mmadiffusion,\n  title = {{MMA}-Diffusion: MultiModal Attack on Diffusion Models},\n"
        "  author = {Yang, Yijun and Gao, Ruiyuan and Wang, Xiaosen and Ho, Tsung-Yi and Xu, Nan and Xu, Qiang},\n"
        "  booktitle = {CVPR},\n  year = {2024},\n}",
    )  # fmt: skip
    Config = MMAConfig
    budgets = {"quick": {"iterations": 100, "candidates": 128, "top": 64}, "full": {}}

    def ranked(self, context: AttackContext, slots: Slots, goal: int) -> list[Tensor]:
        """Prompts int64 [K] that were best at a time, the last first."""
        config, generator = self.config, context.generator(goal, "mma")
        device = slots.table.device
        wanted = context.model.text_output([context.goals[goal].original.prompt]).pooler_output[0]
        tokens = random_tokens(slots.allowed[goal], generator, slots.free.shape[1]).to(device)
        best, history = torch.inf, [tokens]
        for _ in range(config.iterations):
            gradient = self._gradient(context, slots, goal, tokens, wanted)
            proposals = exchanges(gradient, slots.allowed[goal], tokens, config.top, config.candidates, generator)
            losses = self._losses(context, slots, goal, proposals, wanted)
            if float(losses.min()) < best:
                best, tokens = float(losses.min()), proposals[losses.argmin()]
                history.append(tokens)
        return history[::-1]

    def _gradient(self, context: AttackContext, slots: Slots, goal: int, tokens: Tensor, wanted: Tensor) -> Tensor:
        """float32 [K, V], of the loss to the one-hot tokens."""
        embeds = slots.table[tokens][None].requires_grad_()
        (text,) = slots.soft(torch.tensor([goal], device=tokens.device), tokens[None], embeds)
        loss = 1 - torch.cosine_similarity(context.model.text_output([text]).pooler_output[0], wanted, dim=0)
        (gradient,) = torch.autograd.grad(loss, embeds)
        return gradient[0] @ slots.table.T

    def _losses(self, context: AttackContext, slots: Slots, goal: int, proposals: Tensor, wanted: Tensor) -> Tensor:
        """float32 [n]."""
        every = encoded(context, slots, goal, proposals)
        return torch.cat([1 - torch.cosine_similarity(out.pooler_output, wanted[None], dim=1) for out in every])


def exchanges(gradient: Tensor, allowed: Tensor, tokens: Tensor, top: int, count: int, generator: torch.Generator) -> Tensor:
    """int64 [count, K]: `tokens` [K] with one place each, the places in turn, exchanged for one of its `top` allowed tokens (GCG).

    The `top` of a place are those of the smallest gradient [K, V].
    """
    best = gradient.masked_fill(~allowed, torch.inf).topk(min(top, int(allowed.sum())), largest=False).indices
    place = (torch.arange(count) * len(tokens) // count).to(tokens.device)
    which = torch.randint(best.shape[1], (count,), generator=generator).to(tokens.device)
    return tokens.repeat(count, 1).scatter(1, place[:, None], best[place, which][:, None])

"""Where perturbations stand in a prompt, which tokens they may have, and projections onto them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bench.api import AttackContext, BenchError, Candidate, DiffusionModel, GenerationRequest, SoftText

Location = Literal["prefix", "suffix", "insertion", "replacement"]
"""Before, after, or in the middle of the prompt's words; or in place of them all."""


class Slots:
    """Free tokens in the prompts of all goals: `ids` int64 [n, L] with those of the prompts, `free` int64 [n, k] places for others.

    Of goals with fewer of them than others have, what is left over is `there` bool [n, k] False, and changes nothing.
    """

    def __init__(self, context: AttackContext, prompts: Sequence[str], places: Sequence[Sequence[int]]) -> None:
        """`places[g]`: before which words (tokens, from 0) of its prompt each of a goal's free tokens stands, in order."""
        model = context.model
        self.context, self.prompts = context, list(prompts)
        self.table: Tensor = model.text_encoder.get_input_embeddings().weight.detach()
        self.words = [words_of(model, prompt) for prompt in prompts]
        end, begin, length = model.tokenizer.eos_token_id, model.tokenizer.bos_token_id, model.max_tokens
        rows, free = [], []
        for prompt, words, before in zip(prompts, self.words, places, strict=True):
            _require_room(prompt, len(words), len(before), length - 2)
            row, own = [begin], []
            for word in range(len(words) + 1):
                for _ in range(list(before).count(word)):
                    own.append(len(row))
                    row.append(end)
                row += words[word : word + 1]
            rows.append(row + [end] * (length - len(row)))
            free.append(own)
        count, device = max(map(len, free)), self.table.device
        self.ids, self.end = torch.tensor(rows, device=device), end
        # What is left over writes a mark over the last place, which is one anyway.
        self.free = torch.tensor([own + [length - 1] * (count - len(own)) for own in free], device=device)
        self.there = torch.tensor([[k < len(own) for k in range(count)] for own in free], device=device)
        self.allowed = context.allowed().to(self.table.device)
        """bool [n, V]."""

    def filled(self, goals: Tensor, tokens: Tensor) -> Tensor:
        """int64 [m, L]: the prompts of `goals` int64 [m] with `tokens` int64 [m, k] in their places."""
        return self.ids[goals].scatter(1, self.free[goals], torch.where(self.there[goals], tokens, self.end))

    def soft(self, goals: Tensor, tokens: Tensor, embeds: Tensor) -> list[SoftText]:
        """The same as texts whose free tokens have the embeddings [m, k, d]."""
        ids = self.filled(goals, tokens)
        embeds = torch.where(self.there[goals][..., None], embeds, self.table[self.end])
        places = self.free[goals][..., None].expand(-1, -1, embeds.shape[2])
        every = self.table[ids].scatter(1, places, embeds)
        # What is spelled is nobody's business here: edits that look at words look at tokens.
        return [SoftText(self.prompts[int(g)], row, e) for g, row, e in zip(goals, ids, every, strict=True)]

    def text(self, goal: int, tokens: Tensor) -> str:
        """The prompt with these free tokens, spelled."""
        row = self.filled(torch.tensor([goal], device=tokens.device), tokens[None])[0].tolist()
        end = row.index(self.end, 1) if self.end in row[1:] else len(row)
        return str(self.context.model.tokenizer.decode(row[1:end])).strip()

    def candidate(self, goal: int, tokens: Tensor, steps: int) -> Candidate | None:
        """The spelled prompt, which whoever judges tokenises anew."""
        own = tokens[self.there[goal]].tolist()
        return self.context.candidate(goal, self.text(goal, tokens), str(self.context.model.tokenizer.decode(own)), steps)


def words_of(model: DiffusionModel, prompt: str) -> list[int]:
    """Its tokens without marks, as far as the text encoder takes them."""
    found: list[int] = model.tokenizer(prompt, truncation=True).input_ids[1:-1]
    return found


def free_slots(context: AttackContext, count: int, location: Location) -> Slots:
    """`count` free tokens for each goal, together at one place of its prompt."""
    prompts = ["" if location == "replacement" else goal.request.prompt for goal in context.goals]
    words = [len(words_of(context.model, prompt)) for prompt in prompts]
    places = [{"prefix": 0, "suffix": n, "insertion": n // 2, "replacement": 0}[location] for n in words]
    return Slots(context, prompts, [[place] * count for place in places])


def check_room(model: DiffusionModel, places: Sequence[tuple[str, GenerationRequest]], count: int, location: Location) -> None:
    """BenchError if the text encoder does not take one of the prompts with so many free tokens."""
    for prompt in dict.fromkeys("" if location == "replacement" else request.prompt for _, request in places):
        _require_room(prompt, len(words_of(model, prompt)), count, model.max_tokens - 2)


def _require_room(prompt: str, words: int, count: int, room: int) -> None:
    if words + count > room:
        told = f"“{prompt}” has {words} tokens and the attack adds {count}" if words else f"The attack has {count} tokens"
        raise BenchError(f"{told}; the text encoder takes {room}: give the attack fewer (tokens=…).")


def random_tokens(allowed: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    """int64 of a shape, uniform over the allowed tokens (bool [V])."""
    known = allowed.cpu().nonzero()[:, 0]
    return known[torch.randint(len(known), shape, generator=generator)]


def to_simplex(values: Tensor, allowed: Tensor) -> Tensor:
    """The nearest points of the simplex over allowed entries (bool […, V]) to the rows of […, V] (Duchi et al. 2008, fig. 1)."""
    open_ = values.masked_fill(~allowed, -torch.inf)
    ordered, count = open_.sort(dim=-1, descending=True).values, torch.arange(1, values.shape[-1] + 1, device=values.device)
    above = ordered.nan_to_num(neginf=0.0).cumsum(-1) - 1
    largest = ((ordered * count > above) & ordered.isfinite()).sum(-1, keepdim=True)
    shift = above.gather(-1, largest - 1) / largest
    return torch.where(allowed, (values - shift).clamp(min=0), 0.0)


def nearest_tokens(embeds: Tensor, table: Tensor, allowed: Tensor) -> Tensor:
    """int64 […]: of each embedding […, d], the allowed (bool […, V]) token of the table [V, d] with the largest cosine (PEZ)."""
    likeness = torch.nn.functional.normalize(embeds, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T
    return likeness.masked_fill(~allowed, -torch.inf).argmax(-1)

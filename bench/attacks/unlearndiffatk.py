"""UnlearnDiffAtk: a few tokens beside the prompt, found by gradient on the probability simplex of the vocabulary."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from pydantic import Field
from torch import Tensor

from bench.api import AttackContext, Candidate, Card, DiffusionModel, GenerationRequest, Gradient, MethodConfig, Search, WhiteBox
from bench.attacks.descent import Adam
from bench.attacks.tokens import Location, Slots, check_room, free_slots, random_tokens, to_simplex


class NullConfig(MethodConfig):
    """Free tokens and budget."""

    tokens: int = Field(5, ge=1, description="k, free tokens; published: 5, for styles and objects 3.")
    location: Location = Field("prefix", description="Where they stand; replacement: no word of the prompt stays.")
    timesteps: int = Field(50, ge=1, description="Of the loss, one after the other, ascending; after each a picture is judged.")
    iterations: int = Field(40, ge=1, description="Losses at each: gradient steps, or of random tokens, of which the best are judged.")


class UnlearnDiffAtkConfig(NullConfig):
    """Parameters of UnlearnDiffAtk."""

    learning_rate: float = Field(0.01, gt=0, description="Of Adam.")
    weight_decay: float = Field(0.1, ge=0, description="Added to the gradient (L2), as torch's Adam does.")
    gradient: Gradient = Field(
        "adaptive",
        description="adaptive: through activation edits, each at its own timestep; published: ended at their hook points, which are told "
        "the k-th timestep of the ascending list as the k-th, noisiest first, sampling step (SAeUron's public code).",
    )


class _Ascending(WhiteBox):
    """What the attack and its control share: free tokens beside the prompt, losses at one timestep after the other."""

    budgets = {"quick": {"timesteps": 10, "iterations": 20}, "full": {}}

    @property
    def judged(self) -> int:
        """One after each timestep."""
        return int(self.config.timesteps)

    @property
    def gradient_steps(self) -> int:
        """All iterations at all timesteps."""
        return int(self.config.timesteps * self.config.iterations)

    def check(self, model: DiffusionModel, places: Sequence[tuple[str, GenerationRequest]]) -> None:
        """See `Attack.check`: too many tokens."""
        super().check(model, places)
        check_room(model, places, self.config.tokens, self.config.location)


class UnlearnDiffAtk(_Ascending):
    """A few tokens beside the prompt, found by gradient on the probability simplex of the vocabulary.

    `min ‖ε − ε_θ(x_t, t, [δ, prompt])‖²` over one-hot rows of δ, relaxed to the simplex; straight-through samples of it are scored.

    x_t noises a picture of the concept that the unedited model made, with fresh noise at every step; no guidance but where guidance
    is what was changed. The relaxation goes on from timestep to timestep.
    """

    card = Card(
        title="UnlearnDiffAtk", paper="arXiv:2310.11868", supports=("style", "object"),
        bibtex="@inproceedings{zhang2024generate,\n  title = {To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy"
        " to Generate Unsafe Images ... For Now},\n  author = {Zhang, Yimeng and Jia, Jinghan and Chen, Xin and Chen, Aochuan and Zhang,"
        " Yihua and Liu, Jiancheng and Ding, Ke and Liu, Sijia},\n  booktitle = {ECCV},\n  year = {2024},\n}",
    )  # fmt: skip
    Config = UnlearnDiffAtkConfig

    def search(self, context: AttackContext) -> Search:
        """See `WhiteBox.search`."""
        config = self.config
        slots = free_slots(context, config.tokens, config.location)
        relaxed = _Relaxed(slots, config)
        left = torch.arange(len(context.goals))  # on the CPU, as are all numbers of goals: reading them stalls nothing
        for place, t in enumerate(context.attacked().spread(config.timesteps)):
            chance = Chance(context, left.tolist(), f"unlearndiffatk {place}", config.iterations, config.tokens)
            for k in range(config.iterations):
                uniform, noise = chance.uniform[:, k].to(slots.table.device), chance.noise[:, k].to(slots.table.device)
                relaxed.step(context, left, uniform, noise, t, place)
                context.progress((place + (k + 1) / config.iterations) / config.timesteps, f"{len(left)} goals left")
            tokens, spent = relaxed.values[left].argmax(-1), (place + 1) * config.iterations
            left = yield from judged(left, [slots.candidate(int(g), own, spent) for g, own in zip(left, tokens, strict=True)])
            if not len(left):
                return


class _Relaxed:
    """Rows on the simplex [n, k, V]."""

    def __init__(self, slots: Slots, config: UnlearnDiffAtkConfig) -> None:
        self.slots, self.config = slots, config
        even = slots.allowed / slots.allowed.sum(1, keepdim=True)
        self.values = even[:, None].repeat(1, slots.free.shape[1], 1)
        self.adam = Adam(self.values)

    def step(self, context: AttackContext, left: Tensor, uniform: Tensor, noise: Tensor, t: int, place: int) -> None:
        """One gradient step of the goals that are left."""
        values = self.values[left].requires_grad_()
        tokens = (values.detach().cumsum(-1) < uniform[..., None] * values.detach().sum(-1, keepdim=True)).sum(-1)
        tokens = tokens.clamp(max=values.shape[-1] - 1)
        embeds = self.slots.table[tokens] + (values - values.detach()) @ self.slots.table
        loss = denoising_loss(context, left, self.slots.soft(left, tokens, embeds), noise, t, place)
        (gradient,) = torch.autograd.grad(loss.sum(), values)
        gradient = gradient.clamp(-1, 1) + self.config.weight_decay * values.detach()
        moved = values.detach() - self.adam.step(left, gradient, self.config.learning_rate)
        self.values[left] = to_simplex(moved, self.slots.allowed[left][:, None])


class Chance:
    """What goals draw for a round: each from a generator of its own, so that neighbours cannot matter."""

    def __init__(self, context: AttackContext, goals: Sequence[int], purpose: str, count: int, tokens: int) -> None:
        generators = [context.generator(goal, purpose) for goal in goals]
        self.noise = torch.stack([torch.randn(count, *context.model.latent_shape, generator=own) for own in generators])
        """float32 [n, count, 4, h, w]."""
        self.uniform = torch.stack([torch.rand(count, tokens, generator=own) for own in generators])
        """float32 [n, count, tokens]."""


def denoising_loss(context: AttackContext, left: Tensor, texts: Sequence[str], noise: Tensor, t: int, place: int) -> Tensor:
    """float32 [n]: the mean squared error of what the victim predicts of the goals' target pictures with `noise` [n, 4, h, w]."""
    victim = context.attacked()
    timesteps = torch.full((len(left),), t)
    noisy = victim.noised(context.targets[left], timesteps, noise)
    wanted = victim.target(context.targets[left], timesteps, noise)
    return (victim.predict(left.tolist(), texts, noisy, timesteps, place) - wanted).square().flatten(1).mean(1)


def judged(left: Tensor, candidates: Sequence[Candidate | None]) -> Generator[list[Candidate], Sequence[bool], Tensor]:
    """Have candidates judged (None: there is none for this goal), and give the goals that are left."""
    there = [candidate for candidate in candidates if candidate is not None]
    seen = (yield there) if there else []
    reached = {candidate.goal for candidate, success in zip(there, seen, strict=True) if success}
    return left[torch.tensor([int(goal) not in reached for goal in left], dtype=torch.bool)]


class Null(_Ascending):
    """Control: unlearndiffatk without its gradient; as many losses, of random tokens, and as many pictures, of the smallest ones.

    What an attack reaches beyond this, its gradient reached.
    """

    card = Card(
        title="Null control", paper="", bibtex="", supports=("style", "object"), control=True,
        notes="Random tokens with the budget of unlearndiffatk; it has no paper of its own.",
    )  # fmt: skip
    Config = NullConfig

    def search(self, context: AttackContext) -> Search:
        """See `WhiteBox.search`."""
        config = self.config
        slots = free_slots(context, config.tokens, config.location)
        left = torch.arange(len(context.goals))  # on the CPU, as are all numbers of goals: reading them stalls nothing
        for place, t in enumerate(context.attacked().spread(config.timesteps)):
            chance = Chance(context, left.tolist(), f"null {place}", config.iterations, config.tokens)
            generators = [context.generator(goal, f"null tokens {place}") for goal in left.tolist()]
            shape = config.iterations, config.tokens
            drawn = torch.stack([random_tokens(slots.allowed[g], own, *shape) for g, own in zip(left, generators, strict=True)])
            drawn = drawn.to(slots.table.device)
            losses = []
            for k in range(config.iterations):
                texts = slots.soft(left, drawn[:, k], slots.table[drawn[:, k]])
                with torch.no_grad():
                    losses.append(denoising_loss(context, left, texts, chance.noise[:, k].to(drawn.device), t, place))
                context.progress((place + (k + 1) / config.iterations) / config.timesteps, f"{len(left)} goals left")
            best = drawn[torch.arange(len(left), device=drawn.device), torch.stack(losses, 1).argmin(1)]
            spent = (place + 1) * config.iterations
            left = yield from judged(left, [slots.candidate(int(g), own, spent) for g, own in zip(left, best, strict=True)])
            if not len(left):
                return

"""SPM: semi-permeable membranes, one-dimensional adapters that each prompt lets act as far as it is like the concept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup
from pydantic import Field
from torch import Tensor, nn

from bench.api import Card, ClassifierFree, Concept, Erasure, FitContext, UnlearningMethod, sha256_text
from methods.common.adapters import FacilitatedTransport, Factors, LowRankAdapters, adapted_modules, like, tokens
from methods.common.presets import PresetConfig
from methods.common.training import Bank, descend, predict, walk

WARMUP, RESTARTS = 1 / 6, 3
"""Of the learning rate: the share of the iterations (published: 500 of 3000), and how often it falls along a cosine."""
PUBLISHED_SAMPLER = {"guidance_scale": 7.5, "negative_prompt": "low quality, blurry, distorted, bad anatomy, watermark, text"}
"""Of UnlearnCanvas' evaluation of SPM; the prompt is in this project's words."""


class SPMConfig(PresetConfig):
    """Parameters of SPM."""

    published = PUBLISHED_SAMPLER

    preset: Literal["corrected", "published-code"] = Field(
        "corrected",
        description="published-code: the concept's raw id as its text (UnlearnCanvas' code: Van_Gogh), gamma squared (the authors' "
        "infer_spm.py scales both factors), and the sampler of UnlearnCanvas; corrected: the id with spaces, gamma, the usual sampler.",
    )
    guidance_scale: float | None = Field(
        None, ge=0, description="Sampled with instead of the suite's; UnlearnCanvas' code for SPM, and for it alone, has 7.5 for 9.0."
    )
    negative_prompt: str = Field(
        "", description="Sampled with; UnlearnCanvas' code for SPM, and for it alone, has one of words on quality."
    )
    rank: int = Field(1, ge=1, description="Of each adapter; alpha is 1.")
    negative_guidance: float = Field(1.0, description="g in the erasing loss.")
    anchor_strength: float = Field(1000.0, ge=0, description="Weight of the latent anchoring loss.")
    anchors: int = Field(4, ge=1, description="Random texts per state that must not change.")
    iterations: int = Field(3000, ge=0, description="Optimiser steps per concept.")
    batch: int = Field(1, ge=1, description="States per optimiser step.")
    learning_rate: float = Field(1e-4, gt=0, description="Of AdamW, after the warm-up.")
    trajectories: int = Field(32, ge=1, description="Base trajectories per concept whose states are trained on.")
    denoising_steps: int = Field(30, ge=2, description="Steps of these trajectories.")
    start_guidance: float = Field(3.0, description="Guidance scale of these trajectories.")


@dataclass(frozen=True, kw_only=True)
class OwnScale(ClassifierFree):
    """Classifier-free guidance with a scale of its own."""

    guidance_scale: float

    @property
    def key(self) -> tuple[Any, ...]:
        """See `Guidance.key`."""
        return (self.guidance_scale,)

    def combine(self, eps: Tensor, step: Tensor, scale: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Guidance.combine`; K = 2."""
        return super().combine(eps, step, torch.full_like(scale, self.guidance_scale), state)


class SPM(UnlearningMethod):
    """`min ‖ε_φ(z_t, c) − [ε(z_t, ∅) − g (ε(z_t, c) − ε(z_t, ∅))]‖² + λ mean_a ‖ε_φ(z_t, a) − ε(z_t, a)‖²` over adapters φ.

    Anchors a are Gaussian texts, of c's norm times U(0.8, 1.2), each drawn again with probability cos(a, c). As published: the loss,
    the adapters' places and first values, optimiser and schedule. Otherwise: z_t come from the frozen model, where the authors sample
    with the adapter on; they and the anchors of each are drawn once, so that an iteration is one pass; AdamW keeps its moments in
    float32; all pictures have the model's own size. UnlearnCanvas' code trains on SD 1.4, which is another base model and not in
    `published-code`; nor are the products between several adapters that the authors' code adds by summing factors.
    """

    card = Card(
        title="SPM", paper="arXiv:2312.16145", supports=("style", "object"),
        bibtex="@inproceedings{lyu2024onedimensional,\n"
        "  title = {One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications},\n"
        "  author = {Lyu, Mengyao and Yang, Yuhong and Hong, Haiwen and Chen, Hui and Jin, Xuan and He, Yuan and Xue, Hui and Han, Jungong"
        " and Ding, Guiguang},\n  booktitle = {CVPR},\n  year = {2024},\n}",
        notes="Each concept has an adapter of its own; the prompt, not the concept, decides how strongly it acts.",
    )  # fmt: skip
    Config = SPMConfig
    parts = (LowRankAdapters, FacilitatedTransport, OwnScale)
    quick = {"iterations": 2, "trajectories": 1, "denoising_steps": 2, "anchors": 1, "learning_rate": 0.1}
    tuning = {"learning_rate": (3e-3, 1e-2, 3e-2), "anchor_strength": (10.0, 100.0, 1000.0)}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """One adapter per concept, each trained alone."""
        adapters, ends = [], {}
        for done, concept in enumerate(concepts):

            def progress(share: float, text: str, done: int = done) -> None:
                context.progress((done + share) / len(concepts), text)

            factors, ends[str(concept)] = self._train(replace(context, progress=progress), concept)
            adapters.append(factors)
        edit = LowRankAdapters.of(adapters)
        config, notes = self.config, {"first_and_last_loss": ends, "parameters": edit.down.numel() + edit.up.numel()}
        power = 2 if config.preset == "published-code" else 1
        text = FacilitatedTransport(tuple(map(self._text, concepts)), power, config.negative_prompt)
        guidance = None if config.guidance_scale is None else OwnScale(guidance_scale=config.guidance_scale)
        return Erasure(text=text, guidance=guidance, activations=(edit,), notes=notes)

    def fit_after(self, context: FitContext, start: Erasure, concepts: Sequence[Concept]) -> Erasure:
        """Adapters of further concepts beside those that are there: the same as all of them fitted at once."""
        new = self.fit(context, concepts)
        (texts, first), (more, edit) = _parts(start), _parts(new)
        both = replace(edit, down=torch.cat([first.down, edit.down]), up=torch.cat([first.up, edit.up]))
        return replace(new, text=replace(more, texts=texts.texts + more.texts), activations=(both,))

    def _text(self, concept: Concept) -> str:
        return concept.name if self.config.preset == "published-code" else concept.name.replace("_", " ")

    def _train(self, context: FitContext, concept: Concept) -> tuple[dict[str, Factors], list[float]]:
        """An adapter by module, and the first and last loss."""
        config, unet, device = self.config, context.model.unet, context.model.device
        # A function of the concept alone: neither its neighbours nor their order change an adapter.
        generator = torch.Generator().manual_seed(int(sha256_text(f"{context.seed} {concept}")[:15], 16))
        erased = self._states(context, self._text(concept), generator)
        kept = self._anchors(context, erased, generator)
        factors = {}
        for name, module in adapted_modules(unet).items():
            written, read = module.weight.shape[:2]
            down = (2 * torch.rand(config.rank, read, generator=generator) - 1) / read**0.5
            factors[name] = down.to(device), torch.zeros(written, config.rank, device=device)
        parameters = [factor.requires_grad_() for pair in factors.values() for factor in pair]
        optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate)
        warmup = round(config.iterations * WARMUP)
        schedule = get_cosine_with_hard_restarts_schedule_with_warmup(optimiser, warmup, config.iterations, RESTARTS)

        def loss() -> Tensor:
            pick = torch.randint(len(erased.latents), (config.batch,), generator=generator)
            beside = (pick[:, None] * config.anchors + torch.arange(config.anchors)).flatten()
            *inputs, target = (torch.cat([own[pick], other[beside]]) for own, other in zip(erased, kept, strict=True))
            error = (predict(context, unet, *inputs) - target).square()
            return error[: config.batch].mean() + config.anchor_strength * error[config.batch :].mean()

        with adapted(unet, factors, 1 / config.rank):
            ends = descend(context, optimiser, config.iterations, loss, schedule)
        return {name: Factors(down.detach(), up.detach() / config.rank) for name, (down, up) in factors.items()}, ends

    def _states(self, context: FitContext, text: str, generator: torch.Generator) -> Bank:
        """Of trajectories from their second step on, as the authors' are denoised for one step at least."""
        config = self.config

        def away(eps_none: Tensor, eps_text: Tensor) -> Tensor:
            return eps_none - config.negative_guidance * (eps_text - eps_none)

        bank = walk(context, text, away, config.trajectories, config.denoising_steps, config.start_guidance, generator)
        return Bank(*(part[config.trajectories :] for part in bank))

    @torch.no_grad()
    def _anchors(self, context: FitContext, erased: Bank, generator: torch.Generator) -> Bank:
        """`anchors` random texts for each state, one state after the other, and what the frozen model predicts of them."""
        latents, timesteps = (part.repeat_interleave(self.config.anchors, 0) for part in erased[:2])
        states, pooled = (random_texts(own[0], len(latents), generator) for own in (erased.states, erased.pooled))
        parts = zip(*(part.split(context.slots) for part in (latents, timesteps, states, pooled)), strict=True)
        return Bank(latents, timesteps, states, pooled, torch.cat([predict(context, context.model.unet, *part) for part in parts]))


def _parts(erasure: Erasure) -> tuple[FacilitatedTransport, LowRankAdapters]:
    text, (edit,) = erasure.text, erasure.activations
    assert isinstance(text, FacilitatedTransport)
    assert isinstance(edit, LowRankAdapters)
    return text, edit


def random_texts(target: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, …]: Gaussian directions, each taken with probability 1 − cos to `target` […], of its norm times U(0.8, 1.2)."""
    goal = target.flatten().cpu()
    found: list[Tensor] = []
    while len(found) < count and len(goal):
        noise = torch.randn(goal.shape, generator=generator)
        if float(torch.rand((), generator=generator)) < 1 - float(torch.cosine_similarity(noise, goal, dim=0)):
            found.append(noise / noise.norm() * goal.norm() * (0.8 + 0.4 * torch.rand((), generator=generator)))
    return torch.stack(found).view(count, *target.shape).to(target.device) if found else target.expand(count, *target.shape)


@contextmanager
def adapted(unet: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> Iterator[None]:
    """Let every row see the adapters: `x_out + scale · up (down x_in)`, with down [r, in] and up [out, r] by module."""

    def hook(name: str) -> Any:
        down, up = factors[name]

        def added(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            hidden = nn.functional.linear(tokens(args[0]), down)
            return output + scale * like(nn.functional.linear(hidden, up), output)

        return added

    modules = dict(unet.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in factors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


METHOD = SPM

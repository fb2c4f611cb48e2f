"""ESD: erased stable diffusion, fine-tuning that predicts away from the concept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from bench.api import Card, Concept, DDIMSchedule, DiffusionModel, Erasure, FitContext, MethodConfig, PlainText, UnlearningMethod, Weights

TrainMethod = Literal["x", "x-strict", "u", "all"]


def trained_names(unet: nn.Module, train_method: TrainMethod) -> list[str]:
    """Parameters of Linear and Conv2d modules: `x` all in cross-attention, `x-strict` its keys and values, `u` all outside it."""
    wanted: dict[TrainMethod, Callable[[str], bool]] = {
        "x": lambda name: "attn2" in name,
        "x-strict": lambda name: name.endswith(("attn2.to_k", "attn2.to_v")),
        "u": lambda name: "attn2" not in name,
        "all": lambda name: True,
    }
    modules = [(name, m) for name, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and wanted[train_method](name)]
    return [f"{name}.{key}" for name, module in modules for key, _ in module.named_parameters(recurse=False)]


class Bank(NamedTuple):
    """States of base trajectories and the noise the student should predict there."""

    latents: Tensor
    """float32 [n, 4, h, w]."""
    timesteps: Tensor
    """int64 [n]."""
    states: Tensor
    """float32 [n, L, D], the text states of `c_from`."""
    pooled: Tensor
    """float32 [n, P], its pooled text; P = 0 but for SDXL."""
    target: Tensor
    """float32 [n, 4, h, w]."""


class ESDConfig(MethodConfig):
    """Parameters of ESD."""

    train_method: TrainMethod = Field("x", description="What is trained: x, x-strict, u or all.")
    negative_guidance: float = Field(2.0, ge=0, description="eta; 2 with c_from = c_e equals 1 in the first release.")
    iterations: int = Field(200, ge=0, description="Optimiser steps.")
    batch: int = Field(1, ge=1, description="States per optimiser step.")
    learning_rate: float = Field(5e-5, gt=0, description="Of Adam.")
    trajectories: int = Field(32, ge=1, description="Base trajectories per concept whose states are trained on.")
    start_guidance: float = Field(3.0, description="Guidance scale of these trajectories.")


class ESD(UnlearningMethod):
    """`min ‖ε_θ(z_t, c) − [ε_θ0(z_t, c) − η (ε_θ0(z_t, c) − ε_θ0(z_t, ∅))]‖²` over states z_t of base trajectories.

    Trajectories come from the frozen base model, as in the authors' diffusers code. They are sampled first, all states
    kept, and the frozen model's three predictions made once, so that an iteration is one pass through the student.
    """

    card = Card(
        title="ESD", paper="arXiv:2303.07345", supports=("style", "object"),
        bibtex="@inproceedings{gandikota2023erasing,\n  title = {Erasing Concepts from Diffusion Models},\n"
        "  author = {Gandikota, Rohit and Materzy{\\'n}ska, Joanna and Fiotto-Kaufman, Jaden and Bau, David},\n"
        "  booktitle = {ICCV},\n  year = {2023},\n}",
    )  # fmt: skip
    Config = ESDConfig
    tuning = {"learning_rate": (1e-4, 3e-4, 1e-3), "iterations": (50, 100), "negative_guidance": (1.0, 2.0)}
    quick = {"iterations": 2, "trajectories": 2, "batch": 1, "learning_rate": 1e-2}

    @property
    def row_wise(self) -> bool:
        """It changes weights."""
        return False

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Several concepts share the iterations, each with its own trajectories."""
        return self._train(context, concepts, {})

    def fit_after(self, context: FitContext, start: Erasure, concepts: Sequence[Concept]) -> Erasure:
        """Train the erased weights on further concepts; the frozen predictions stay those of the unedited model."""
        return self._train(context, concepts, start.weights.values if start.weights else {})

    def _train(self, context: FitContext, concepts: Sequence[Concept], start: Mapping[str, Tensor]) -> Erasure:
        model, unet, config = context.model, context.model.unet, self.config
        generator = torch.Generator().manual_seed(context.seed)
        banks = [self._bank(context, context.texts(concept).target, generator) for concept in concepts]
        bank = Bank(*(torch.cat(parts) for parts in zip(*banks, strict=True)))
        own = dict(unet.named_parameters())
        names = trained_names(unet, config.train_method)
        weights = {name: start.get(f"unet.{name}", own[name]).detach().clone().requires_grad_() for name in names}
        optimiser = torch.optim.Adam(weights.values(), lr=config.learning_rate)
        losses = []
        for iteration in range(config.iterations):
            pick = torch.randint(len(bank.latents), (config.batch,), generator=generator)
            latents, timesteps, states, pooled, target = (part[pick] for part in bank)
            with _autocast(context):
                predicted = functional_call(unet, weights, (latents, timesteps), _texts(model, states, pooled)).sample
            loss = (predicted.float() - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
            context.progress((iteration + 1) / config.iterations, "training")
        values = {f"unet.{name}": value.detach() for name, value in weights.items()}
        ends = [round(float(loss), 6) for loss in (losses[:1] + losses[-1:])]
        return Erasure(weights=Weights(values), notes={"first_and_last_loss": ends, "parameters": sum(v.numel() for v in values.values())})

    @torch.no_grad()
    def _bank(self, context: FitContext, text: str, generator: torch.Generator) -> Bank:
        """Walk `trajectories` rows down the schedule with guidance; at every state, note the frozen predictions."""
        model, eta = context.model, self.config.negative_guidance
        schedule = DDIMSchedule.of(model.scheduler, context.steps)
        pair = PlainText().encode(model, [""], "unconditional", 1) + PlainText().encode(model, [text], "conditional", 1)
        count = self.config.trajectories
        latents = torch.randn(count, *model.latent_shape, generator=generator).to(model.device)
        states = torch.cat([cond.embeds.expand(count, -1, -1) for cond in pair])
        pooled = torch.cat([cond.added.get("text_embeds", cond.embeds[:, 0, :0]).expand(count, -1) for cond in pair])
        texts = _texts(model, states, pooled)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for step, t in enumerate(schedule.timesteps.tolist()):
            timesteps = torch.full((2 * count,), t, device=model.device)
            with _autocast(context):
                predicted = model.unet(latents.repeat(2, 1, 1, 1), timesteps, **texts).sample
            eps_none, eps_concept = predicted.float().chunk(2)
            found.append((latents, timesteps[:count], eps_concept - eta * (eps_concept - eps_none)))
            guided = eps_none + self.config.start_guidance * (eps_concept - eps_none)
            latents = float(schedule.x_scale[step]) * latents + float(schedule.out_scale[step]) * guided
        z, t, target = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Bank(z, t, states[-1:].expand(len(z), -1, -1), pooled[-1:].expand(len(z), -1), target)


def _texts(model: DiffusionModel, states: Tensor, pooled: Tensor) -> dict[str, Any]:
    """The UNet's arguments for texts, of pictures of the model's own size."""
    return model.unet_texts(states, dict.fromkeys(model.added, pooled), [model.picture_size] * len(states))


def _autocast(context: FitContext) -> torch.autocast:
    return torch.autocast(context.model.device.type, context.dtype, enabled=context.dtype != torch.float32)


METHOD = ESD

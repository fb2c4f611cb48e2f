"""Train SAEs as SAeUron's public code does (`SAE/trainer.py`, `SAE/sae.py`): BatchTopK, AuxK for dead latents, unit decoder rows.

Activations are streamed: sample a round of pictures, shuffle its tokens in memory, make some passes over them, go on with
the next round. Nothing large is written; a checkpoint after every round is what an interrupted training continues from.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.api import BenchError, DiffusionModel, Erasure, GenerationRequest, MethodConfig, Probe, Row, sample, write_atomic
from methods.sae.autoencoder import SAEConfig, SparseAutoencoder, tokens_of


class SAERecipe(MethodConfig):
    """Hyper-parameters; the defaults are those of the public code where it has them (README, `scripts/train.py`)."""

    k: int = Field(32, ge=1, description="Latents kept per token.")
    expansion_factor: int = Field(16, ge=1, description="Latents per channel of the hook point.")
    rounds: int = Field(8, ge=1, description="Times that fresh pictures are sampled.")
    pictures: int = Field(480, ge=1, description="Sampled per round, at all steps.")
    steps: int = Field(
        4_000,
        ge=1,
        description="Optimiser steps, shared out evenly to the rounds; a round's tokens are passed over as often as that takes.",
    )
    batch: int = Field(4_096, ge=1, description="Tokens per optimiser step.")
    learning_rate: float = Field(4e-4, gt=0, description="Of Adam, falling linearly to 0.")
    adam_eps: float = Field(6.25e-10, gt=0, description="Of Adam.")
    auxk_weight: float = Field(1 / 32, ge=0, description="Of the loss that revives dead latents.")
    dead_tokens: int = Field(10_000_000, ge=1, description="A latent that has not fired for so many tokens is dead.")
    auxk_target: Literal["residual", "published-code"] = Field(
        "residual", description="What dead latents are to explain: x − x̂ or, in the public code, x̂ − x with the decoder's bias added."
    )
    halves: Literal["conditional", "both"] = Field(
        "conditional", description="Halves of guidance trained on; the public code: conditional."
    )
    seed: int = Field(42, ge=0, description="Of initial weights and orders.")


@dataclass
class Curves:
    """One value per log interval: FVU, mean number of latents a token, share of dead latents."""

    step: list[int] = field(default_factory=list)
    fvu: list[float] = field(default_factory=list)
    l0: list[float] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)


class TokenCollector(Probe):
    """Keeps every token of its hook points in half precision in memory."""

    def __init__(self, hookpoints: Sequence[str], halves: str) -> None:
        self.hookpoints = tuple(hookpoints)
        self.lowest_role = 1 if halves == "conditional" else 0
        self.found: dict[str, list[Tensor]] = {name: [] for name in hookpoints}

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`."""
        kept = x_out[(row >= 0) & (role >= self.lowest_role)]
        self.found[hookpoint].append(tokens_of(kept).flatten(0, 1).bfloat16())

    def take(self, hookpoint: str) -> Tensor:
        """bfloat16 [tokens, channels], forgotten here."""
        return torch.cat(self.found.pop(hookpoint))


def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """Weiszfeld's algorithm; float32 [N, d] → [d]."""
    guess = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - guess).norm(dim=1).clamp(min=1e-8)
        new = (weights[:, None] * x).sum(0) / weights.sum()
        moved = (new - guess).norm()
        guess = new
        if moved < tolerance:
            break
    return guess


class SAETrainer:
    """One SAE with its optimiser. `step` is one batch."""

    def __init__(self, d_in: int, recipe: SAERecipe, device: torch.device) -> None:
        self.recipe, self.done = recipe, 0
        self.sae = SparseAutoencoder(SAEConfig(d_in, recipe.k, recipe.expansion_factor)).to(device)
        self.optimiser = torch.optim.Adam(self.sae.parameters(), lr=recipe.learning_rate, eps=recipe.adam_eps)
        self.silent = torch.zeros(self.sae.config.latents, dtype=torch.int64, device=device)
        """Tokens since each latent last fired."""
        self.curves = Curves()

    def step(self, x: Tensor) -> None:
        """One optimiser step on tokens float32 [N, d_in]."""
        if self.done == 0:
            with torch.no_grad():
                self.sae.b_dec.copy_(geometric_median(x))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * (1 - self.done / self.recipe.steps)
        self.sae.normalise_decoder()
        loss, fvu, fired = sae_loss(self.sae, x, self.silent > self.recipe.dead_tokens, self.recipe)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self._keep_decoder_on_sphere()
        self.optimiser.step()
        self.silent = torch.where(fired.any(0), 0, self.silent + len(x))
        self.done += 1
        if self.done % max(1, self.recipe.steps // 100) == 0 or self.done == self.recipe.steps:
            self.curves.step.append(self.done)
            self.curves.fvu.append(round(float(fvu), 5))
            self.curves.l0.append(round(float(fired.sum(1).float().mean()), 3))
            self.curves.dead.append(round(float((self.silent > self.recipe.dead_tokens).float().mean()), 5))
        if self.done == self.recipe.steps:
            self.sae.normalise_decoder()

    @torch.no_grad()
    def _keep_decoder_on_sphere(self) -> None:
        """Remove each row's gradient along the row."""
        rows, grad = self.sae.W_dec, self.sae.W_dec.grad
        assert grad is not None
        grad -= (grad * rows).sum(1, keepdim=True) * rows

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {"sae": self.sae.state_dict(), "optimiser": self.optimiser.state_dict(), "silent": self.silent, "done": self.done,
                "curves": vars(self.curves)}  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.sae.load_state_dict(state["sae"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.silent, self.done, self.curves = state["silent"].to(self.silent.device), state["done"], Curves(**state["curves"])


def sae_loss(sae: SparseAutoencoder, x: Tensor, dead: Tensor, recipe: SAERecipe) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, FVU, fired bool [N, latents]) of tokens [N, d_in]: `FVU + auxk_weight · AuxK`, both relative to the batch's variance."""
    z = sae.pre(x)
    threshold = z.detach().flatten().kthvalue(z.numel() - len(x) * recipe.k + 1).values
    fired = (z >= threshold) & (z > 0)
    error = sae.decode(z * fired) - x
    variance = (x - x.mean(0)).square().sum()
    fvu = error.square().sum() / variance
    dead_count = int(dead.sum())
    if not dead_count:
        return fvu, fvu.detach(), fired
    wanted = sae.config.d_in // 2
    own = z[:, dead]
    values, indices = own.topk(min(wanted, dead_count), sorted=False)
    explained = torch.zeros_like(own).scatter(1, indices, values) @ sae.W_dec[dead]
    residual = recipe.auxk_target == "residual"
    missed = explained + error.detach() if residual else explained + sae.b_dec - error.detach()
    auxk = min(dead_count / wanted, 1.0) * missed.square().sum() / variance
    return fvu + recipe.auxk_weight * auxk, fvu.detach(), fired


@dataclass(frozen=True)
class SAETraining:
    """SAEs for some hook points of one model, trained together on the same pictures.

    `requests(count, start)` gives the training split's pictures `start …`; `work` holds the checkpoint.
    """

    model: DiffusionModel
    hookpoints: tuple[str, ...]
    recipe: SAERecipe
    requests: Callable[[int, int], Sequence[GenerationRequest]]
    work: Path
    dtype: torch.dtype
    slots: int
    say: Callable[[str], None]

    def run(self) -> dict[str, SAETrainer]:
        """Train to the end; the same call again continues after the last whole round."""
        trainers: dict[str, SAETrainer] = {}
        start = self._resume(trainers)
        began = time.monotonic()
        for number in range(start, self.recipe.rounds):
            tokens = self.sample_round(number)
            for name in self.hookpoints:
                x = tokens.take(name)
                if name not in trainers:
                    torch.manual_seed(self.recipe.seed)
                    trainers[name] = SAETrainer(x.shape[1], self.recipe, self.model.device)
                self._train(trainers[name], x, number)
                curves = trainers[name].curves
                if curves.step:
                    self.say(f"{name}: step {trainers[name].done}/{self.recipe.steps}, FVU {curves.fvu[-1]:.3f}, "
                             f"L0 {curves.l0[-1]:.1f}, dead {curves.dead[-1]:.1%}")  # fmt: skip
            self._save(trainers, number + 1)
            left = (time.monotonic() - began) / (number + 1 - start) * (self.recipe.rounds - number - 1)
            self.say(f"round {number + 1}/{self.recipe.rounds} done, {left / 60:.1f} min left")
        return trainers

    def sample_round(self, number: int) -> TokenCollector:
        """Tokens of one round of pictures."""
        collector, erasure = TokenCollector(self.hookpoints, self.recipe.halves), Erasure()
        rows = [Row(request, erasure) for request in self.requests(self.recipe.pictures, number * self.recipe.pictures)]
        self.say(f"round {number + 1}/{self.recipe.rounds}: sampling {len(rows)} pictures")
        sample(self.model, rows, self.dtype, self.slots, probes=[collector])
        return collector

    def _train(self, trainer: SAETrainer, x: Tensor, number: int) -> None:
        """One round's share of steps; the last, incomplete batch of a pass over the tokens is left out."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + number)
        batch, end = min(self.recipe.batch, len(x)), self.recipe.steps * (number + 1) // self.recipe.rounds
        while trainer.done < end:
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for indices in order[: len(x) // batch * batch].split(batch)[: end - trainer.done]:
                trainer.step(x[indices].float())

    @property
    def _made_from(self) -> dict[str, Any]:
        """All that a continued training must share."""
        (first,) = self.requests(1, 0)
        return {"recipe": self.recipe.model_dump(), "model": self.model.digest, "hookpoints": sorted(self.hookpoints),
                "first": first.id, "dtype": str(self.dtype)}  # fmt: skip

    @property
    def _checkpoint(self) -> Path:
        return self.work / "sae-training.ckpt"

    def _save(self, trainers: Mapping[str, SAETrainer], rounds: int) -> None:
        buffer = io.BytesIO()
        states = {name: trainer.state() for name, trainer in trainers.items()}
        torch.save({"rounds": rounds, "made_from": self._made_from, "trainers": states}, buffer)
        write_atomic(self._checkpoint, buffer.getvalue())

    def _resume(self, trainers: dict[str, SAETrainer]) -> int:
        """Rounds that are done; their trainers are put into `trainers`."""
        if not self._checkpoint.exists():
            return 0
        try:
            state = torch.load(self._checkpoint, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise BenchError(f"{self._checkpoint} is damaged: delete it, and the training starts anew.") from error
        if state.get("made_from") != self._made_from:
            raise BenchError(
                f"{self._checkpoint} is of another model, other hook points, steps, dtype or parameters: choose another --out."
            )
        for name, one in state["trainers"].items():
            trainers[name] = SAETrainer(one["sae"]["b_dec"].numel(), self.recipe, self.model.device)
            trainers[name].restore(one)
        self.say(f"continued after round {state['rounds']}")
        return int(state["rounds"])

"""Concept Steerers: the concept's latents of a sparse autoencoder inside the text encoder are subtracted from every prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor, nn

from bench.api import (
    BenchError,
    Card,
    Concept,
    Cond,
    DiffusionModel,
    Erasure,
    FitContext,
    MethodConfig,
    PlainText,
    Role,
    TextEdit,
    UnlearningMethod,
    content_hash,
)  # fmt: skip
from methods.common.texts import name_pair
from methods.sae.autoencoder import WEIGHTS, SparseAutoencoder, load_sae
from methods.sae.training import SAERecipe, SAETrainer

BATCH = 64
"""Texts encoded at once for training."""


@dataclass(frozen=True, eq=False)
class SteeredText(TextEdit):
    """`h + s v` behind one layer of the text encoder for conditional texts, `h − s v` for the unconditional one."""

    vector: Tensor
    """float32 [L, D], v by position."""
    layer: int
    strength: float
    """s."""
    slots: str
    """See `SteerersConfig`."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`; extra texts are plain."""
        plain = PlainText().encode(model, texts, role, steps)
        if role == "extra" or (role == "unconditional" and self.slots == "conditional"):
            return plain
        shift = self.vector * (self.strength if role == "conditional" else -self.strength)
        with behind(layers_of(model)[self.layer], lambda h: h + shift):
            states = [model.text_output([text]).last_hidden_state for text in texts]
        return [replace(cond, embeds=own) for cond, own in zip(plain, states, strict=True)]


@contextmanager
def behind(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, what the layer puts out [n, L, D] is what `change` makes of it."""
    handle = layer.register_forward_hook(lambda module, inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def layers_of(model: DiffusionModel) -> nn.ModuleList:
    """The text encoder's layers. BenchError for a model with two encoders."""
    if model.text_encoder_2 is not None:
        raise BenchError("Concept Steerers is made here for models with one text encoder, and this one has two: leave it out.")
    return next(m for name, m in model.text_encoder.named_modules() if name.endswith("encoder.layers") and isinstance(m, nn.ModuleList))


@torch.no_grad()
def activations(model: DiffusionModel, layer: int, texts: Sequence[str]) -> Tensor:
    """float32 [n, L, D] behind a layer, of every position."""
    found: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        found.append(states)
        return states

    with behind(layers_of(model)[layer], keep):
        for start in range(0, len(texts), BATCH):
            model.text_encoder(model.tokenize(texts[start : start + BATCH]).to(model.device))
    return torch.cat(found)


class SteerersConfig(MethodConfig):
    """Parameters of Concept Steerers."""

    strength: float = Field(-0.5, description="Of the steering vector; negative removes. Published for nudity: -0.5.")
    latents: Literal["dense", "topk"] = Field("dense", description="Latents of the concept: all, as the public code, or each token's k.")
    slots: Literal["both", "conditional"] = Field(
        "both", description="Texts that are steered: also the unconditional one, the other way, as the public code, or not."
    )
    depth: float = Field(0.75, ge=0, lt=1, description="Which layer, as a share of them; 0.75 is index 9 of SD 1.4's 12.")
    k: int = Field(32, ge=1, description="Latents kept per token in training.")
    expansion_factor: int = Field(4, ge=1, description="Latents per channel.")
    tokens: int = Field(400_000_000, ge=1, description="Token activations trained on, drawn from the suite's texts again and again.")
    batch: int = Field(4_096, ge=1, description="Of them per optimiser step.")
    learning_rate: float = Field(3e-4, gt=0, description="Of Adam, falling linearly to 0.")
    dead_tokens: int = Field(10_000_000, ge=1, description="A latent that has not fired for so many tokens is dead.")


class Steerers(UnlearningMethod):
    """The autoencoder is trained once for a model and the texts of a suite, and shared by all concepts."""

    card = Card(
        title="Concept Steerers: leveraging k-sparse autoencoders for controllable generations", paper="arXiv:2501.19066",
        supports=("style", "object"),
        bibtex="@misc{kim2025concept,\n  title = {Concept Steerers: Leveraging K-Sparse Autoencoders for Test-Time Controllable"
        " Generations},\n  author = {Kim, Dahye and Ghadiyaram, Deepti},\n  year = {2025},\n  eprint = {2501.19066},\n"
        "  archivePrefix = {arXiv},\n}",
        notes="Steering as in the public code. This project's own: the autoencoder is trained as SAeUron's (BatchTopK, falling rate), on"
        " the suite's texts and not on I2P's; the phrase is the concept's name, several joined by commas. SD 1.x alone.",
    )  # fmt: skip
    Config = SteerersConfig
    parts = (SteeredText,)
    quick = {"tokens": 2_000, "batch": 200, "k": 8, "learning_rate": 1e-2}
    tuning = {"strength": (-0.5, -1.0, -2.0), "latents": ("dense", "topk")}

    def prepare(self, context: FitContext, concepts: Sequence[Concept]) -> None:
        """Train the autoencoder."""
        if context.cache is not None:
            self._autoencoder(context, concepts)

    @torch.no_grad()
    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """The vector is decoded from the latents that the concepts' names have, position by position."""
        model, config = context.model, self.config
        sae, layer = self._autoencoder(context, concepts), self._layer(context.model)
        phrase = ", ".join(name_pair(context.texts(concept))[0] for concept in concepts)
        (states,) = activations(model, layer, [phrase])
        latents = sae.pre(states) if config.latents == "dense" else sae.encode(states)
        return Erasure(text=SteeredText(latents @ sae.W_dec, layer, config.strength, config.slots), notes={"phrase": phrase})

    def _layer(self, model: DiffusionModel) -> int:
        return int(self.config.depth * len(layers_of(model)))

    def _autoencoder(self, context: FitContext, concepts: Sequence[Concept]) -> SparseAutoencoder:
        """Kept below `context.cache` by all that it depends on; without a cache trained now."""
        model, layer, recipe = context.model, self._layer(context.model), self._recipe(context.seed)
        texts = _texts(context, concepts)
        if context.cache is None:
            return _train(context, layer, recipe, texts)
        numerics = [model.device.type, torch.get_num_threads(), str(torch.__version__)]
        place = context.cache / "text-autoencoders" / content_hash([model.digest, layer, recipe.model_dump(), texts, numerics])
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):  # of several workers one trains
            if not (place / WEIGHTS).is_file():
                _train(context, layer, recipe, texts).save(place)
        return load_sae(place, model.device)

    def _recipe(self, seed: int) -> SAERecipe:
        c = self.config
        own = c.model_dump(include={"k", "expansion_factor", "batch", "learning_rate", "dead_tokens"})
        return SAERecipe.model_validate({**own, "steps": max(1, c.tokens // c.batch), "seed": seed})


def _texts(context: FitContext, concepts: Sequence[Concept]) -> list[str]:
    """All that the suite says of its concepts, or of these where it names none."""
    found = {""}
    for concept in context.concepts or concepts:
        own = context.texts(concept)
        found |= {own.target, own.anchor, *own.retain, *(phrase for pair in own.pairs for phrase in pair)}
    return sorted(found)


def _train(context: FitContext, layer: int, recipe: SAERecipe, texts: Sequence[str]) -> SparseAutoencoder:
    x = activations(context.model, layer, texts).flatten(0, 1)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(recipe.seed)
        trainer = SAETrainer(x.shape[1], recipe, context.model.device)
        for step in range(recipe.steps):
            trainer.step(x[torch.randint(len(x), (recipe.batch,), generator=generator).to(x.device)])
            if step % 100 == 0:
                context.progress(step / recipe.steps, "training the text autoencoder")
    return trainer.sae.half().float().requires_grad_(False)  # as it is read back from its file


METHOD = Steerers

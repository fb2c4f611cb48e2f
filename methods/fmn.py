"""Forget-Me-Not: cross-attention to the concept's tokens is trained away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from pydantic import Field
from torch import Tensor, nn

from bench.api import Assets, BenchError, Card, Concept, DiffusionModel, Erasure, FitContext, MethodConfig, UnlearningMethod
from methods.common.finetuning import Part, Student, Texts, parameter_names
from methods.common.forgetting import examples_digest


class FMNConfig(MethodConfig):
    """Parameters of Forget-Me-Not."""

    train_method: Part = Field("x", description="What is trained: x cross-attention, x-strict its keys and values, u all else, all.")
    pictures: int = Field(20, ge=1, description="Pictures of each concept.")
    iterations: int = Field(100, ge=0, description="Optimiser steps.")
    batch: int = Field(1, ge=1, description="Pictures per optimiser step.")
    learning_rate: float = Field(2e-5, gt=0, description="Of AdamW.")
    weight_decay: float = Field(0.01, ge=0, description="Of AdamW.")
    padding: bool = Field(True, description="Whether attention to the end mark and what pads the text counts too (use_pooler).")


class FMN(UnlearningMethod):
    """`‖A[:, :, P]‖₂` over all cross-attention layers: A their probabilities, P where the concept's tokens are in the caption.

    z_t are noised pictures of the concept, conditional half alone. The authors' optional textual inversion, which finds tokens for the
    concept first, is not here: the concept's name is what models of a suite know.
    """

    card = Card(
        title="Forget-Me-Not", paper="arXiv:2303.17591", supports=("style", "object"),
        bibtex="@inproceedings{zhang2024forget,\n  title = {Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models},\n"
        "  author = {Zhang, Gong and Wang, Kai and Xu, Xingqian and Wang, Zhangyang and Shi, Humphrey},\n"
        "  booktitle = {CVPR Workshops},\n  year = {2024},\n}",
        notes="UnlearnCanvas trains cross-attention for styles and the whole UNet for objects (train_method=all).",
    )  # fmt: skip
    Config = FMNConfig
    row_wise = False
    quick = {"pictures": 4, "batch": 2, "iterations": 2, "learning_rate": 1e-2}
    tuning = {"learning_rate": (1e-4, 2e-4, 5e-4), "padding": (True, False)}

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """The pictures."""
        return examples_digest(assets)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Pictures of several concepts are forgotten together."""
        config, model = self.config, context.model
        student = Student(context, parameter_names(model.unet, config.train_method))
        found = [(concept, context.examples(concept, config.pictures, True)) for concept in concepts]
        latents = torch.cat([own.latents for _, own in found])
        texts = Texts.join(Texts.of(model, own.prompts) for _, own in found)
        names = [(prompt, context.texts(concept).pairs[0][0]) for concept, own in found for prompt in own.prompts]
        places = torch.stack([token_places(model, prompt, name, config.padding) for prompt, name in names]).to(model.device)

        def loss() -> Tensor:
            pick = student.pick(len(latents), config.batch)
            attention.begin(places[pick])
            student.predict(student.noisy(latents[pick]), texts.take(pick))
            return torch.cat(attention.seen).norm()

        with _watching(model.unet) as attention:
            notes = student.train(loss, config.iterations, config.learning_rate, weight_decay=config.weight_decay)
        return student.erasure(notes)


def token_places(model: DiffusionModel, prompt: str, name: str, padding: bool) -> Tensor:
    """Bool [L]: where the tokens of a name are in a prompt and, with padding, all from the end mark on. BenchError if nowhere."""
    ids, own = model.tokenize([prompt])[0].tolist(), model.tokenizer(name.rstrip("."), add_special_tokens=False).input_ids
    places = torch.zeros(len(ids), dtype=torch.bool)
    for start in range(len(ids) - len(own) + 1):
        if own and ids[start : start + len(own)] == own:
            places[start : start + len(own)] = True
    if not places.any():
        raise BenchError(f'"{name}" is not in the caption "{prompt}": FMN needs captions that name the concept.')
    if padding:
        places[ids.index(model.tokenizer.eos_token_id) :] = True
    return places


@dataclass
class _Attention:
    """What cross-attention layers pay to some tokens in one pass."""

    places: Tensor = field(default_factory=lambda: torch.zeros(0))
    queries: dict[str, Tensor] = field(default_factory=dict)
    seen: list[Tensor] = field(default_factory=list)
    """float32, one flat tensor for each layer."""

    def begin(self, places: Tensor) -> None:
        """Before a pass; bool [n, L]."""
        self.places, self.queries, self.seen = places, {}, []

    def see(self, heads: int, scale: float, query: Tensor, key: Tensor) -> None:
        """Queries [n, P, C] and keys [n, L, C] of one layer: probabilities of the wanted tokens."""
        q, k = (own.unflatten(-1, (heads, -1)).transpose(1, 2).float() for own in (query, key))
        probabilities = (q @ k.transpose(-1, -2) * scale).softmax(-1)
        self.seen.append((probabilities * self.places[:, None, None, :]).flatten())


@contextmanager
def _watching(unet: nn.Module) -> Iterator[_Attention]:
    """Fused attention never shows its probabilities: they are made again from its queries and keys."""
    found, handles = _Attention(), []

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.queries.__setitem__(name, output)

    def use(name: str, own: Attention) -> Any:
        return lambda module, inputs, output: found.see(own.heads, own.scale, found.queries[name], output)

    for name, own in unet.named_modules():
        if name.endswith("attn2") and isinstance(own, Attention):
            handles.append(own.to_q.register_forward_hook(keep(name)))
            handles.append(own.to_k.register_forward_hook(use(name, own)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


METHOD = FMN

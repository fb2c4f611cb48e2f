"""ConceptPrune: weights of feed-forward layers that fire for a concept and not for its anchor are set to zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.api import Card, Concept, Erasure, FitContext, GenerationRequest, MethodConfig, Probe, Row, UnlearningMethod, Weights, sample


class ConceptPruneConfig(MethodConfig):
    """Parameters of ConceptPrune."""

    sparsity: float = Field(0.01, gt=0, le=1, description="Share of each row's weights that may count as skilled at a step.")
    first_steps: float = Field(
        0.2, gt=0, le=1, description="τ: the share of sampling steps, the first ones, whose skilled weights are pruned."
    )
    pictures: int = Field(20, ge=1, description="Pairs of prompts, with the concept and with its anchor, each one picture.")


class ConceptPrune(UnlearningMethod):
    """WANDA scores `S = |W| ⊙ ‖z‖` of each feed-forward output layer at each step, with z its inputs over all tokens.

    A weight is skilled where S of the concept is in its row's top share and above S of the anchor. Skilled weights of the first steps,
    all together, become zero. Inputs are scaled to unit length a token before their norms are taken over tokens, as in the public code.
    """

    card = Card(
        title="ConceptPrune", paper="arXiv:2405.19237", supports=("style", "object"),
        bibtex="@inproceedings{chavhan2025conceptprune,\n"
        "  title = {{ConceptPrune}: Concept Editing in Diffusion Models via Skilled Neuron Pruning},\n"
        "  author = {Chavhan, Ruchika and Li, Da and Hospedales, Timothy},\n  booktitle = {ICLR},\n  year = {2025},\n}",
        notes="Published: 1 % of each row, the first 10 of 50 steps. Conditional half of guidance alone.",
    )  # fmt: skip
    Config = ConceptPruneConfig
    row_wise = False
    quick = {"pictures": 2}
    tuning = {"sparsity": (0.03, 0.1, 0.2), "first_steps": (0.2, 0.5, 1.0)}

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """What several concepts' neurons are is pruned together."""
        unet = context.model.unet
        layers = [name for name, module in unet.named_modules() if name.endswith("ff.net.2") and isinstance(module, nn.Linear)]
        steps = max(1, round(self.config.first_steps * context.steps))
        pruned = {name: torch.zeros_like(unet.get_submodule(name).weight, dtype=torch.bool) for name in layers}
        for concept in concepts:
            norms = self._norms(context, concept, layers, steps)
            for name in layers:
                pruned[name] |= skilled(unet.get_submodule(name).weight, norms.norms(name), self.config.sparsity)
        values = {f"unet.{name}.weight": unet.get_submodule(name).weight.masked_fill(own, 0.0) for name, own in pruned.items()}
        share = sum(int(own.sum()) for own in pruned.values()) / sum(own.numel() for own in pruned.values())
        return Erasure(weights=Weights(values), notes={"pruned_share": round(share, 6)})

    def _norms(self, context: FitContext, concept: Concept, layers: Sequence[str], steps: int) -> InputNorms:
        """Over pictures of both captions from the same noise."""
        pairs = context.captions(concept, self.config.pictures)
        height, width = context.model.picture_size
        rows = [
            Row(GenerationRequest(text, "", "", 1 + k, "prune", context.steps, context.guidance_scale, height, width), Erasure())
            for side in (0, 1) for k, text in enumerate(pair[side] for pair in pairs)
        ]  # fmt: skip
        probe = InputNorms(layers, len(pairs), steps)
        done = 0

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            context.progress(done / len(rows), f"inputs of {len(layers)} layers")

        sample(context.model, rows, context.dtype, context.slots, advance, [probe])
        return probe


class InputNorms(Probe):
    """Column norms of layers' inputs for the first steps, of concept (the first rows) and anchor (the others) apart."""

    def __init__(self, layers: Sequence[str], concept_rows: int, steps: int) -> None:
        self.hookpoints, self.concept_rows, self.steps = tuple(layers), concept_rows, steps
        self.squares: dict[str, Tensor] = {}
        """By layer, float32 [2, steps, in]."""

    def see(self, hookpoint: str, x_in: Tensor, x_out: Tensor, step: int, row: Tensor, role: Tensor) -> None:
        """See `Probe.see`; `x_in` [S, tokens, in]."""
        if step >= self.steps:
            return
        if hookpoint not in self.squares:
            self.squares[hookpoint] = torch.zeros(2, self.steps, x_in.shape[-1], device=x_in.device)
        unit = torch.nn.functional.normalize(x_in.float(), dim=-1)
        sums = unit.square().sum(1)
        wanted = (row >= 0) & (role == 1)
        for side, own in enumerate((row < self.concept_rows, row >= self.concept_rows)):
            self.squares[hookpoint][side, step] += (sums * (wanted & own)[:, None]).sum(0)

    def norms(self, layer: str) -> Tensor:
        """float32 [2, steps, in], of concept and anchor."""
        return self.squares[layer].sqrt()


def skilled(weight: Tensor, norms: Tensor, sparsity: float) -> Tensor:
    """Bool [out, in]: skilled at any step. `norms` float32 [2, steps, in], of concept and anchor; of each row at least one may be."""
    count = max(1, round(sparsity * weight.shape[1]))
    found = torch.zeros_like(weight, dtype=torch.bool)
    for of_concept, of_anchor in norms.unbind(1):
        score = weight.abs() * of_concept
        top = torch.zeros_like(found).scatter_(1, score.topk(count, dim=1).indices, True)
        found |= top & (score > weight.abs() * of_anchor)
    return found


METHOD = ConceptPrune

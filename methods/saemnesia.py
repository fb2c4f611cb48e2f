"""SAEmnesia: SAeUron's edit on a sparse autoencoder in which every concept was given a latent of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from bench.api import Assets, Card, Concept, Erasure, FitContext, UnlearningMethod
from methods.sae import choose
from methods.sae.choose import SAEMethodConfig, places
from methods.sae.edits import SteerLatents
from methods.sae.supervised import Supervision, supervised


class SAEmnesiaConfig(SAEMethodConfig):
    """Parameters of SAEmnesia. With `sae` its SAE is taken as it is, such as the authors' leno3003/SAEmnesia, and nothing is trained."""

    features: int = Field(1, ge=1, description="Latents chosen at every step; each concept has one of its own.")
    detection: Literal["calibrated", "saeuron-code"] = Field(
        "saeuron-code", description="As of saeuron; calibrated needs detectors beside the SAE (train-sae --part calibration)."
    )
    multiplier: float = Field(-5.0, description="γ: a latent z becomes z · γ · (its mean activation for the concept). Swept as published.")
    pictures: int = Field(24, ge=1, description="Of each concept, that the SAE is fine-tuned on.")
    iterations: int = Field(600, ge=0, description="Optimiser steps of the fine-tuning.")
    batch: int = Field(128, ge=1, description="Pictures per optimiser step.")
    learning_rate: float = Field(5e-6, gt=0, description="Of Adam.")
    label_weight: float = Field(1.0, ge=0, description="Of the loss on labels. Not known from the release.")
    sparsity_weight: float = Field(1e-3, ge=0, description="Of the mean activation. Not known from the release.")


class SAEmnesia(UnlearningMethod):
    """See `methods/sae/supervised.py` for the SAE, `saeuron` for the edit, of which only γ is searched."""

    card = Card(
        title="SAEmnesia", paper="arXiv:2509.21379", supports=("style", "object"),
        bibtex="@misc{saemnesia2025,\n  title = {{SAEmnesia}: Erasing Concepts in Diffusion Models with Supervised Sparse Autoencoders},\n"
        "  year = {2025},\n  eprint = {2509.21379},\n  archivePrefix = {arXiv},\n}",
        notes="The SAE is fine-tuned here from the suite's own, on noised pictures; weights of its loss are this project's choice.",
    )  # fmt: skip
    Config = SAEmnesiaConfig
    tuning = {"multiplier": (-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0)}
    parts = (SteerLatents,)

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """The SAEs that it begins with, and the pictures."""
        return {**choose.digests(self.config, assets, concepts), "examples": assets.examples}

    def prepare(self, context: FitContext, concepts: Sequence[Concept]) -> None:
        """Fine-tune the SAEs, or gather what one that was given lacks."""
        if self.config.sae is not None:
            choose.prepare(self.config, context, concepts)
        else:
            self._own(context, concepts)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Look the concepts' latents up."""
        config = self.config if self.config.sae is not None else self._own(context, concepts)
        found = choose.choose(config, context, concepts, self.config.multiplier)
        return Erasure(activations=(SteerLatents(**found.tables, factors=found.factors, error="exact"),), notes=found.notes)

    def _own(self, context: FitContext, concepts: Sequence[Concept]) -> SAEmnesiaConfig:
        """The configuration with the SAEs that were made here."""
        where = places(self.config, context.assets, concepts)
        folder = next(folder.parent for folder, _ in where.values())
        own = {name: getattr(self.config, name) for name in Supervision.__dataclass_fields__}
        made = supervised(context, folder, tuple(where), Supervision(**own))
        config: SAEmnesiaConfig = self.config.model_copy(update={"sae": made})
        return config


METHOD = SAEmnesia

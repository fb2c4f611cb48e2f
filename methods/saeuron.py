"""SAeUron: multiply the sparse-autoencoder latents of a concept by a negative number wherever they fire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from bench.api import Assets, Card, Concept, Erasure, FitContext, UnlearningMethod
from methods.sae.choose import SAEMethodConfig, choose, digests, prepare
from methods.sae.edits import SteerLatents


class SAeUronConfig(SAEMethodConfig):
    """Parameters of SAeUron."""

    multiplier: float = Field(
        -5.0, description="γ: a latent z becomes z · γ · (its mean activation for the concept). The public code's styles: −1."
    )
    error: Literal["exact", "published-code", "none"] = Field(
        "exact", description="The SAE's reconstruction error: exact keeps it, published-code has the public code's sign, none drops it."
    )


class SAeUron(UnlearningMethod):
    """`x + Σ_i (γ m_i − 1) z_i W_dec[i]` over the concept's latents i above their thresholds, at every step, token and guidance half.

    Formulas as in the authors' public code (`utils/hooks.py`, `SAE/unlearning_utils.py`); the paper's text was not at hand.
    """

    version = 1
    card = Card(
        title="SAeUron: interpretable concept unlearning in diffusion models with sparse autoencoders",
        paper="arXiv:2501.18052",
        bibtex="""@inproceedings{cywinski2025saeuron,
  title = {{SAeUron}: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders},
  author = {Cywi{\\'n}ski, Bartosz and Deja, Kamil},
  booktitle = {International Conference on Machine Learning},
  year = {2025},
  eprint = {2501.18052},
  archivePrefix = {arXiv}
}""",
        supports=("style", "object"),
        notes="Concepts at once: a latent that two chose acts at the lower threshold with the lower factor. docs/saeuron-and-per.md",
    )
    Config = SAeUronConfig
    tuning = {"features": (1, 2, 4), "multiplier": (-1.0, -5.0, -20.0)}
    published_tuning = {"percentile": (99.99, 99.995, 99.999), "multiplier": (-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0)}
    parts = (SteerLatents,)

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """SAEs and their statistics."""
        return digests(self.config, assets, concepts)

    def prepare(self, context: FitContext, concepts: Sequence[Concept]) -> None:
        """Gather the statistics of SAEs that come without."""
        prepare(self.config, context, concepts)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Look the concepts' latents up; nothing is trained."""
        found = choose(self.config, context, concepts, self.config.multiplier)
        edit = SteerLatents(**found.tables, factors=found.factors, error=self.config.error)
        return Erasure(activations=(edit,), notes=found.notes)


METHOD = SAeUron

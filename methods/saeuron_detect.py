"""PER: detect the patches that show a concept with a sparse autoencoder, replace their embeddings by others of the same map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from bench.api import Assets, Card, Concept, Erasure, FitContext, UnlearningMethod
from methods.sae.choose import SAEMethodConfig, choose, digests, prepare
from methods.sae.edits import ReplacePatches


class PERConfig(SAEMethodConfig):
    """Parameters of PER."""

    source: Literal["random", "nearest", "mean"] = Field(
        "random", description="What takes a detected patch's place: a random or the nearest undetected patch of the map, or their mean."
    )
    dilation: int = Field(0, ge=0, le=8, description="Cells by which the detected region is grown, as far as an undetected one is left.")


class SAEDetect(UnlearningMethod):
    """`y_p = x_q(p)` for detected patches p, q(p) undetected in the same map; all other patches stay bit for bit.

    Each guidance half has its own mask and its own draw, a function of request, step and hook point. Where nothing or everything
    is detected the map stays as it is. After the project page of PER; its code was not public.
    """

    version = 2
    card = Card(
        title="PER (patch embedding replacement): Look But Don't Touch with Sparse Autoencoders for Unlearning in Diffusion Models",
        paper="arXiv:2606.31699",
        bibtex="""@inproceedings{cassano2026look,
  title = {Look But Don't Touch with Sparse Autoencoders for Unlearning in Diffusion Models},
  author = {Cassano, Enrico and Renzulli, Riccardo and Ahmed, Rayyan and Grangetto, Marco and Alaniz, Stephan},
  booktitle = {European Conference on Computer Vision},
  year = {2026},
  eprint = {2606.31699},
  archivePrefix = {arXiv}
}""",
        supports=("object",),
        notes="For objects: a style shows in every patch, so that nothing is left to replace it with. More: docs/saeuron-and-per.md.",
    )
    Config = PERConfig
    tuning = {"features": (1, 2, 4, 8), "dilation": (0, 1)}
    parts = (ReplacePatches,)

    def inputs(self, assets: Assets, concepts: Sequence[Concept]) -> Mapping[str, str]:
        """SAEs and their statistics."""
        return digests(self.config, assets, concepts)

    def prepare(self, context: FitContext, concepts: Sequence[Concept]) -> None:
        """Gather the statistics of SAEs that come without."""
        prepare(self.config, context, concepts)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """Look the concepts' latents up; nothing is trained."""
        found = choose(self.config, context, concepts, 0.0)
        edit = ReplacePatches(**found.tables, source=self.config.source, dilation=self.config.dilation)
        return Erasure(activations=(edit,), notes=found.notes)


METHOD = SAEDetect

"""An SAE with a latent of its own for every concept: SAEmnesia's supervised fine-tuning (arXiv:2509.21379).

Assigned are the latents of highest score (`features.scores`, averaged over steps), no two concepts the same. Then, over pictures of
every concept: `L = MSE + w · BCE(ℓ, y) + s · mean z`, ℓ the spatial means of the assigned latents' pre-activations, y which of the
concepts of its kind the picture shows. Pictures are noised, not sampled step by step, and a picture is labelled with the concept it
was asked for alone: the authors' pictures are the anchor prompts' whole trajectories, which would be many times as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.api import BenchError, Concept, DDIMSchedule, FitContext, content_hash
from methods.common.finetuning import Noisy, Student, Texts
from methods.sae.autoencoder import SparseAutoencoder, folder_of, load_sae
from methods.sae.features import scores
from methods.sae.statistics import FILE, Statistics, load_statistics


@dataclass(frozen=True)
class Supervision:
    """How to fine-tune."""

    pictures: int
    """Of each concept."""
    iterations: int
    batch: int
    """Pictures an optimiser step."""
    learning_rate: float
    label_weight: float
    sparsity_weight: float


def supervised(context: FitContext, saes: Path, hookpoints: Sequence[str], recipe: Supervision) -> Path:
    """The folder of fine-tuned SAEs with their statistics, made once. BenchError without a place to keep them."""
    if context.cache is None:
        raise BenchError("SAEmnesia's SAE must be kept somewhere: this context has no cache.")
    begin = {name: load_sae(folder_of(saes, name), context.model.device) for name in hookpoints}
    numerics = [str(context.dtype), context.model.device.type, torch.get_num_threads(), str(torch.__version__)]
    digests = {name: sae.digest for name, sae in begin.items()}
    recipe_key = [digests, context.model.digest, context.seed, context.steps, context.assets.examples, vars(recipe), numerics]
    place = context.cache / "saemnesia" / content_hash(recipe_key)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        for name, sae in begin.items():
            if not (folder_of(place, name) / FILE).is_file():
                _make(context, name, sae, load_statistics(folder_of(saes, name), sae.digest, context.model.digest), recipe, place)
    return place


def _make(context: FitContext, hookpoint: str, begin: SparseAutoencoder, statistics: Statistics, recipe: Supervision, place: Path) -> None:
    sae = SparseAutoencoder(begin.config).to(context.model.device)
    sae.load_state_dict(begin.state_dict())
    pictures = _Pictures.of(context, hookpoint, statistics.concepts, recipe.pictures)
    _tune(sae, pictures, assigned(statistics), recipe, context)
    folder = folder_of(place, hookpoint)
    sae.save(folder)
    kept = load_sae(folder, context.model.device)
    pictures.statistics(kept).save(folder)


def assigned(statistics: Statistics) -> Tensor:
    """int64 [C]: each concept's latent. The best pair of concept and latent first, no latent twice."""
    score = torch.stack([scores(statistics, index).mean(0) for index in range(len(statistics.concepts))])
    found = torch.full((len(score),), -1)
    for _ in range(len(score)):
        concept, latent = divmod(int(score.argmax()), score.shape[1])
        found[concept] = latent
        score[concept], score[:, latent] = -torch.inf, -torch.inf
    return found


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Pictures of every concept, and what they are at a hook point when noised."""

    student: Student
    hookpoint: str
    concepts: tuple[str, ...]
    latents: Tensor
    texts: Texts
    concept_of: Tensor
    """int64 [n]: which concept each was asked for."""

    @classmethod
    def of(cls, context: FitContext, hookpoint: str, concepts: tuple[str, ...], count: int) -> _Pictures:
        found = [context.examples(Concept.parse(concept), count, True) for concept in concepts]
        texts = Texts.of(context.model, [prompt for own in found for prompt in own.prompts])
        places = torch.arange(len(concepts)).repeat_interleave(count)
        return cls(Student(context, []), hookpoint, concepts, torch.cat([own.latents for own in found]), texts, places)

    def tokens(self, pick: Tensor, at: Noisy, sae: SparseAutoencoder) -> Tensor:
        """float32 [n, P, C] of pictures at these places, as noised."""
        seen: list[Tensor] = []
        block = self.student.model.unet.get_submodule(self.hookpoint)

        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            out = output[0] if isinstance(output, tuple) else output
            seen.append(sae.tokens(inputs[0], out).float())

        handle = block.register_forward_hook(hook)
        try:
            self.student.frozen(at, self.texts.take(pick))
        finally:
            handle.remove()
        return seen[0]

    @torch.no_grad()
    def statistics(self, sae: SparseAutoencoder) -> Statistics:
        """Mean latents at every sampling step, of all pictures with noise of their own."""
        context, model = self.student.context, self.student.model
        timesteps = DDIMSchedule.of(model.scheduler, context.steps).timesteps
        means = torch.zeros(len(self.concepts), len(timesteps), sae.config.latents, device=model.device)
        counts = torch.bincount(self.concept_of)
        for step, timestep in enumerate(timesteps.tolist()):
            for pick in torch.arange(len(self.latents)).split(context.slots):
                own = sae.encode(self.tokens(pick, self.student.noisy(self.latents[pick], timestep), sae)).mean(1)
                means[:, step].index_add_(0, self.concept_of[pick].to(model.device), own)
            context.progress((step + 1) / len(timesteps), f"statistics at {self.hookpoint}")
        means /= counts.to(means)[:, None, None]
        return Statistics(self.concepts, timesteps.cpu(), means.cpu(), counts, sae.digest, model.digest)


def _tune(sae: SparseAutoencoder, pictures: _Pictures, latents: Tensor, recipe: Supervision, context: FitContext) -> None:
    """In place."""
    kinds = torch.tensor([concept.startswith("style:") for concept in pictures.concepts])
    latents = latents.to(pictures.latents.device)
    optimiser = torch.optim.Adam(sae.parameters(), lr=recipe.learning_rate)
    for iteration in range(recipe.iterations):
        pick = pictures.student.pick(len(pictures.latents), recipe.batch)
        x = pictures.tokens(pick, pictures.student.noisy(pictures.latents[pick]), sae)
        own = pictures.concept_of[pick]
        wanted = torch.nn.functional.one_hot(own, len(kinds)).to(x)
        known = (kinds[own][:, None] == kinds).to(x)  # of concepts of another kind nothing is known
        loss = supervised_loss(sae, x, latents, wanted, known, recipe)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        sae.normalise_decoder()
        context.progress((iteration + 1) / recipe.iterations, f"SAE at {pictures.hookpoint}")


def supervised_loss(sae: SparseAutoencoder, x: Tensor, latents: Tensor, wanted: Tensor, known: Tensor, recipe: Supervision) -> Tensor:
    """Of tokens [n, P, C] with the concepts' latents [C], labels and which of them are known, float32 [n, C]."""
    logits = sae.encoder(x - sae.b_dec)
    kept = torch.relu(logits)
    kept = kept * (kept >= sae.smallest_kept(kept))
    labels = binary_cross_entropy_with_logits(logits[..., latents].mean(1), wanted, weight=known, reduction="sum") / known.sum()
    return (sae.decode(kept) - x).square().mean() + recipe.label_weight * labels + recipe.sparsity_weight * kept.mean()

"""Statistics of an SAE that is published without any: gathered while a method is fitted, and kept for the next fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.api import BenchError, DDIMSchedule, Erasure, FitContext, GenerationRequest, Kind, Row, content_hash, sample
from methods.sae.autoencoder import SparseAutoencoder
from methods.sae.statistics import FILE, MeanCollector, Statistics, load_statistics, membership_of


def statistics_of(context: FitContext, folder: Path, hookpoint: str, sae: SparseAutoencoder, kinds: Sequence[Kind]) -> Statistics:
    """Those beside the SAE; without any, those of the suite's pictures of concepts of these kinds. BenchError if it names none.

    What is gathered is kept below `context.cache`, by all that it depends on.
    """
    if (folder / FILE).is_file():
        return load_statistics(folder, sae.digest, context.model.digest)
    requests = [request for kind in kinds for request in context.statistics(kind)]
    if not requests or context.cache is None:
        return load_statistics(folder, sae.digest, context.model.digest)  # which says how to make them
    recipe = [sae.digest, context.model.digest, hookpoint, str(context.dtype), context.guidance_scale, [r.id for r in requests]]
    place = context.cache / "statistics" / content_hash(recipe)
    if not (place / FILE).is_file():
        gather(context, hookpoint, sae, requests).save(place)
    return load_statistics(place, sae.digest, context.model.digest)


def gather(context: FitContext, hookpoint: str, sae: SparseAutoencoder, requests: Sequence[GenerationRequest]) -> Statistics:
    """Sample the requests with the base model and average the latents of those that show a concept, on the model's device.

    The public code dumps every picture (4 to 6.5 GB) and averages later. Labels of requests say what each counts for.
    """
    labels = [("style", r.style) if r.style else ("object", r.object) for r in requests]
    concepts = list(dict.fromkeys(f"{kind}:{name}" for kind, name in labels))
    if len(concepts) < 2:
        raise BenchError(f"Statistics of {concepts[0]} alone tell nothing: its latents are chosen by what sets it apart from others.")
    model, done = context.model, 0

    def advance(pictures: int) -> None:
        nonlocal done
        done += pictures
        context.progress(done / len(requests), f"statistics at {hookpoint}, {len(requests)} pictures")

    probe = MeanCollector(sae, hookpoint, membership_of(requests, concepts).to(model.device), context.steps)
    sample(model, [Row(request, Erasure()) for request in requests], context.dtype, context.slots, advance, [probe])
    return probe.statistics(concepts, DDIMSchedule.of(model.scheduler, context.steps).timesteps, model.digest)

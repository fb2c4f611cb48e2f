"""Statistics of an SAE that is published without any: gathered, or read from what the authors' scripts left, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from bench.api import BenchError, DDIMSchedule, Erasure, FitContext, GenerationRequest, Kind, Row, content_hash, load_tensors, sample
from methods.sae.autoencoder import SparseAutoencoder
from methods.sae.statistics import FILE, MeanCollector, Statistics, load_statistics, membership_of


def statistics_of(context: FitContext, folder: Path, hookpoint: str, sae: SparseAutoencoder, kinds: Sequence[Kind]) -> Statistics:
    """Those beside the SAE; without any, those of the authors' file or the suite's pictures. BenchError if it names neither.

    What is gathered is kept below `context.cache`, by all that it depends on.
    """
    if (folder / FILE).is_file():
        return load_statistics(folder, sae.digest, context.model.digest)
    if context.cache is None or not all(kind in context.assets.statistics for kind in kinds):
        return load_statistics(folder, sae.digest, context.model.digest)  # which says how to make them
    sources = [context.assets.statistics[kind] for kind in kinds]
    kind = context.model.device.type
    numerics = [str(context.dtype), context.slots, kind, torch.get_num_threads() if kind == "cpu" else 0, str(torch.__version__)]
    recipe = [sae.digest, context.model.digest, hookpoint, context.guidance_scale, context.steps, sources, numerics]
    place = context.cache / "statistics" / content_hash(recipe)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):  # of several workers one gathers
        if not (place / FILE).is_file():
            made = [_read_or_gather(context, hookpoint, sae, kind) for kind in kinds]
            (made[0] if len(made) == 1 else _joined(made)).save(place)
    return load_statistics(place, sae.digest, context.model.digest)


def _read_or_gather(context: FitContext, hookpoint: str, sae: SparseAutoencoder, kind: Kind) -> Statistics:
    path = context.assets.latents.get(kind)
    return gather(context, hookpoint, sae, context.statistics(kind)) if path is None else read_latents(context, path, sae, kind)


def read_latents(context: FitContext, path: Path, sae: SparseAutoencoder, kind: Kind) -> Statistics:
    """Means of `style_latents_dict_*.pkl` or `cls_latents_dict_*.pkl`, which hold float16 [prompts, steps, latents] by concept.

    BenchError for anything but tensors of that shape: no code in the file is run.
    """
    context.progress(0.0, f"reading {path.name}")
    found = load_tensors(path)
    wanted = (context.steps, sae.config.latents)
    wrong = next((name for name, own in found.items() if own.ndim != 3 or own.shape[1:] != wanted), None)
    if not found or wrong is not None:
        shape = f"{wrong} has the shape {list(found[wrong].shape)}" if wrong else "it is empty"
        raise BenchError(
            f"{path} does not fit ({shape}, [prompts, {wanted[0]}, {wanted[1]}] is needed): give the file of this SAE and steps."
        )
    concepts = tuple(f"{kind}:{name.replace(' ', '_')}" for name in found)
    means = torch.stack([own.float().mean(0) for own in found.values()])
    counts = torch.tensor([len(own) for own in found.values()])
    timesteps = DDIMSchedule.of(context.model.scheduler, context.steps).timesteps
    return Statistics(concepts, timesteps, means, counts, sae.digest, context.model.digest)


def _joined(parts: Sequence[Statistics]) -> Statistics:
    """Of concepts of several kinds, at the same hook point."""
    concepts = tuple(concept for part in parts for concept in part.concepts)
    means, counts = torch.cat([part.means for part in parts]), torch.cat([part.counts for part in parts])
    return Statistics(concepts, parts[0].timesteps, means, counts, parts[0].sae, parts[0].model)


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

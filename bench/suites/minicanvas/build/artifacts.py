"""Make the reference that says which pictures are artifacts, and show that it finds those that are planted.

Class means and covariance are of pictures that the unedited model samples itself. Rendered pictures after the autoencoder
were tried too: as many of them find planted artifacts a little worse (three times as many, about equally well), and what the
model draws unlike the renderer would count as an artifact of every method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.diffusion.loading import load_model
from bench.diffusion.numerics import describe, pick_dtype
from bench.diffusion.rows import Row
from bench.diffusion.sampler import Sampler, sample
from bench.interfaces import Erasure
from bench.metrics.artifacts import ArtifactReference, auroc
from bench.metrics.uncertainty import wilson
from bench.scoring import judge_all, load_judge
from bench.suites.minicanvas import NO_OBJECT, MiniCanvas
from bench.types import GenerationRequest

PER_CELL, LOT, SLOTS, PLANT_SEED = 8, 600, 32, 7
Pixels = NDArray[np.uint8]


def make_reference(weights: Path, device: torch.device, say: Callable[[str], None]) -> ArtifactReference:
    """`PER_CELL` pictures of each cell and empty scene for the classes, `LOT` for the threshold, `LOT` more for the check."""
    suite = MiniCanvas(weights)
    model, judge = load_model(suite.model_folder(), device), load_judge(suite, "artifact", device)
    dtype, steps = pick_dtype("auto", model, SLOTS), suite.presets["full"].steps

    def features(pixels: Pixels) -> NDArray[np.float32]:
        return np.asarray(judge_all(judge, torch.from_numpy(pixels)).features.numpy())

    def pictures(what: str, requests: Sequence[GenerationRequest]) -> Pixels:
        say(f"artifacts: sampling {len(requests)} pictures for the {what}")
        return np.asarray(model.decode(sample(model, [Row(request, Erasure()) for request in requests], dtype, SLOTS).latents).numpy())

    known = class_requests(suite, steps)
    start = PER_CELL * len(suite.styles) * len(suite.objects)  # beyond the seeds of the classes' pictures
    reference = ArtifactReference.fit(
        features(pictures("classes", known)), [f"{r.style}/{r.object}" for r in known],
        features(pictures("threshold", suite.split_requests("artifact", LOT, steps, start))), model.digest, judge.digest,
    )  # fmt: skip
    checked = suite.split_requests("artifact", LOT, steps, start + LOT)
    found = validate(reference, checked, pictures("check", checked), features)
    say(f"artifacts: {found}")
    counts = {"classes": len(known), "threshold": LOT, "check": LOT}
    return replace(reference, notes={**found, "pictures": counts, "steps": steps, "numerics": describe(Sampler(model, dtype, SLOTS))})


def class_requests(suite: MiniCanvas, steps: int) -> tuple[GenerationRequest, ...]:
    """`PER_CELL` pictures of every style with every object and with none."""
    cells = [(style, obj) for style in suite.styles for obj in (*suite.objects, NO_OBJECT)]
    return tuple(suite.request(*cell, seed, steps, "artifact") for seed in range(1, PER_CELL + 1) for cell in cells)


def validate(
    reference: ArtifactReference, requests: Sequence[GenerationRequest], clean: Pixels, features: Callable[[Pixels], NDArray[np.float32]]
) -> dict[str, Any]:
    """On the unedited model's pictures: the share beyond the threshold; of each planted artifact, AUROC and the same share."""
    own = reference.distances(features(clean))
    far = own > reference.threshold
    styles = np.array([request.style for request in requests])
    planted = {}
    for name, plant in PLANTED.items():
        distances = reference.distances(features(plant(clean, np.random.default_rng(PLANT_SEED))))
        planted[name] = {"auroc": auroc(own, distances), "far": float((distances > reference.threshold).mean())}
    return {
        "far": float(far.mean()), "far_interval": wilson(int(far.sum()), len(far)),
        "far_by_style": {str(style): float(far[styles == style].mean()) for style in np.unique(styles)}, "planted": planted,
    }  # fmt: skip


def shuffle_patches(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The 4 × 4 patches of each picture in random order."""
    n, height, width, _ = pixels.shape
    grid = pixels.reshape(n, 4, height // 4, 4, width // 4, 3).swapaxes(2, 3)
    patches = grid.reshape(n, 16, height // 4, width // 4, 3)
    mixed = np.take_along_axis(patches, np.argsort(rng.random((n, 16)), axis=1)[:, :, None, None, None], axis=1)
    return mixed.reshape(grid.shape).swapaxes(2, 3).reshape(pixels.shape)


def saturate(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Three times the saturation, one and a half times the contrast."""
    grey = pixels.mean(axis=-1, keepdims=True)
    return _bytes(127.5 + 1.5 * (grey + 3 * (pixels - grey) - 127.5))


def checker(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A chequered pattern, squares of 4 px, 40 brighter and darker: what is left of a broken latent pixel."""
    y, x = np.indices(pixels.shape[1:3]) // 4
    return _bytes(pixels + np.where((x + y) % 2, 40.0, -40.0)[..., None])


def repeat_block(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The middle sixteenth everywhere."""
    height, width = pixels.shape[1:3]
    return np.tile(pixels[:, height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8], (1, 4, 4, 1))


def noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian, of standard deviation 30."""
    return _bytes(pixels + rng.normal(0, 30, pixels.shape))


def _bytes(values: NDArray[Any]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)


PLANTED: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "patch shuffle": shuffle_patches, "saturation": saturate, "checker": checker, "block repeat": repeat_block, "noise": noise,
}  # fmt: skip
"""Each takes uint8 [n, H, W, 3] and a generator."""

"""The two published classifiers of UnlearnCanvas: a vision transformer for styles, another for objects.

`style50.pth` and `style50_cls.pth` are dictionaries written by torch.save with the weights of a timm model under
`model_state_dict`, its head replaced by one of 51 or 20 outputs (arXiv:2402.11846, public code `accuracy.py`). They are read
without unpickling anything but tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from bench.api import BenchError, ClassifierOutput, in_threads, load_torch, sha256_file, sha256_text

STYLE_FILE, OBJECT_FILE = "style50.pth", "style50_cls.pth"
SIZE = 224
ARCHITECTURES = {
    1024: "vit_large_patch16_224.augreg_in21k", 768: "vit_base_patch16_224", 384: "vit_small_patch16_224", 192: "vit_tiny_patch16_224",
}  # fmt: skip
"""timm names by the width of the head. The published files are of the first."""


class UnlearnCanvasClassifier:
    """Both networks on the same resized pictures, in float32."""

    batch = 16

    def __init__(self, networks: Sequence[Any], styles: Sequence[str], objects: Sequence[str], digest: str) -> None:
        self.style, self.object = networks
        self.styles, self.objects, self.digest = tuple(styles), tuple(objects), digest

    def __call__(self, pixels: Tensor) -> ClassifierOutput:
        """uint8 [n, H, W, 3] → float32 logits [n, 51], [n, 20] and the style network's features [n, d].

        As published: Pillow's bilinear resize to 224 × 224, then (x / 255 − 0.5) / 0.5.
        """
        resized = np.stack(in_threads(_resized, pixels.numpy()))
        image = (torch.from_numpy(resized).to(next(self.style.parameters()).device).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        features = self.style.forward_head(self.style.forward_features(image), pre_logits=True)
        return ClassifierOutput(self.style.get_classifier()(features), self.object(image), features)


def _resized(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def load(folder: Path, device: torch.device, styles: Sequence[str], objects: Sequence[str]) -> UnlearnCanvasClassifier:
    """Read both files of a folder, which do not name their classes. BenchError says what is wrong with one."""
    networks = [_load(folder / name, len(classes)).to(device) for name, classes in ((STYLE_FILE, styles), (OBJECT_FILE, objects))]
    digest = sha256_text("".join(sha256_file(folder / name) for name in (STYLE_FILE, OBJECT_FILE)))
    return UnlearnCanvasClassifier(networks, styles, objects, digest)


def _load(path: Path, classes: int) -> Any:
    try:
        state = load_torch(path)["model_state_dict"]
        outputs, width = state["head.weight"].shape
        if outputs != classes:
            raise BenchError(f"{path} has {outputs} outputs, {classes} are needed: the two classifiers may have been exchanged.")
        model = timm.create_model(ARCHITECTURES[width], pretrained=False, num_classes=classes)
        model.load_state_dict(state)
    except BenchError:
        raise
    except Exception as error:  # torch raises pickle's, zipfile's and its own kinds for one fact
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(
            f"{path} is no classifier of UnlearnCanvas ({first}): fetch it again (python -m bench assets fetch classifiers --again)."
        ) from error
    return model.eval().requires_grad_(False)

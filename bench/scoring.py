"""Pictures to stored outcomes: verdicts, logits, features, digests. Metrics come later and see only these."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from bench.config import Images
from bench.interfaces import Classifier, ClassifierOutput
from bench.registry import CLASSIFIERS, load_object
from bench.suites.suite import JudgeRole, Suite
from bench.types import GenerationRequest, Target

SAMPLED_PICTURES = 12


def load_judge(suite: Suite, role: JudgeRole, device: torch.device) -> Classifier:
    """The network that the suite names for a role."""
    files = suite.judge(role)
    return cast(Classifier, load_object(f"{CLASSIFIERS[files.kind]}:load")(files.folder, device))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Lossless bytes of one picture uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=False)
    return buffer.getvalue()


@torch.no_grad()
def judge_all(judge: Classifier, pixels: Tensor, device: torch.device, batch: int = 64) -> ClassifierOutput:
    """Verdicts on uint8 [n, H, W, 3], on the CPU, in batches of fixed size so that neighbours cannot matter."""
    parts = []
    for part in pixels.split(batch):
        padded = torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1)])
        parts.append([values[: len(part)].cpu() for values in judge(padded.to(device))])
    return ClassifierOutput(*(torch.cat(values) for values in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Scorer:
    """The judges of a run, loaded once."""

    evaluation: Classifier
    artifact: Classifier
    device: torch.device

    @classmethod
    def load(cls, suite: Suite, device: torch.device) -> Scorer:
        """Evaluation verdicts come from one network, features for distances from another."""
        return cls(load_judge(suite, "evaluation", device), load_judge(suite, "artifact", device), device)

    @property
    def digests(self) -> dict[str, str]:
        """For the identity of units."""
        return {"evaluation": self.evaluation.digest, "artifact": self.artifact.digest}

    def features(self, pixels: Tensor) -> np.ndarray[Any, Any]:
        """float32 [n, d] of the artifact network."""
        return np.asarray(judge_all(self.artifact, pixels, self.device).features.numpy())

    def outcomes(self, requests: Sequence[GenerationRequest], pixels: Tensor, keep: Sequence[bool]) -> pd.DataFrame:
        """One row per picture, in order; the PNG bytes of those in `keep`, null for the others."""
        verdicts = judge_all(self.evaluation, pixels, self.device)
        arrays = pixels.numpy()
        styles, objects = self.evaluation.styles, self.evaluation.objects
        return pd.DataFrame({
            "request": [r.id for r in requests],
            "prompt": [r.prompt for r in requests],
            "style": [r.style for r in requests],
            "object": [r.object for r in requests],
            "seed": [r.seed for r in requests],
            "style_pred": [styles[i] for i in verdicts.style.argmax(1).tolist()],
            "object_pred": [objects[i] for i in verdicts.object.argmax(1).tolist()],
            "style_logits": list(verdicts.style.numpy()),
            "object_logits": list(verdicts.object.numpy()),
            "features": list(self.features(pixels)),
            "sha256": [hashlib.sha256(a.tobytes()).hexdigest() for a in arrays],
            "png": [png(a) if kept else None for a, kept in zip(arrays, keep, strict=True)],
        })  # fmt: skip


def kept(policy: Images, requests: Sequence[GenerationRequest], target: Target | None) -> list[bool]:
    """Which pictures of a unit are stored: all, none, or `SAMPLED_PICTURES`, half of which (where there are) show the target.

    The base model's (no target) are sampled whole: every other method's are compared with them.
    """
    if policy != "sample" or target is None:
        return [policy != "none"] * len(requests)
    own = [i for i, request in enumerate(requests) if target.involves(request.style, request.object)]
    other = [i for i in range(len(requests)) if i not in own]
    spread = partial(_spread, count=SAMPLED_PICTURES // 2)
    chosen = {*spread(own), *spread(other)}
    return [i in chosen for i in range(len(requests))]


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """`count` of the indices (all, where there are fewer), evenly spaced."""
    count = min(count, len(indices))
    return [indices[k * len(indices) // count] for k in range(count)]

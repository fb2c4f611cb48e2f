"""Pictures to stored outcomes: verdicts, logits, features, digests. Metrics come later and see only these."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

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

PICTURES = 64
"""What is decoded and judged at once."""
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


def judge_all(judge: Classifier, pixels: Tensor, device: torch.device) -> ClassifierOutput:
    """Verdicts on uint8 [n, H, W, 3], on the CPU, in batches of fixed size so that neighbours cannot matter."""
    return _judged([judge], pixels, device)[0]


@torch.no_grad()
def _judged(judges: Sequence[Classifier], pixels: Tensor, device: torch.device) -> list[ClassifierOutput]:
    """Every judge's verdicts, in one pass over the pictures."""
    parts: list[list[list[Tensor]]] = [[] for _ in judges]
    for part in pixels.split(PICTURES):
        padded = torch.cat([part, part[-1:].expand(PICTURES - len(part), -1, -1, -1)]).to(device)
        for own, judge in zip(parts, judges, strict=True):
            own.append([values[: len(part)] for values in judge(padded)])
    return [ClassifierOutput(*(torch.cat(values).cpu() for values in zip(*own, strict=True))) for own in parts]


class Verdict(NamedTuple):
    """What is stored of a picture; logits and features float32, in the order of the judges' classes."""

    style: np.ndarray[Any, Any]
    object: np.ndarray[Any, Any]
    features: np.ndarray[Any, Any]
    sha256: str
    """Of its pixels."""
    png: bytes | None


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

    def judge(self, pixels: Tensor, keep: Sequence[bool]) -> list[Verdict]:
        """All that is stored of each picture of uint8 [n, H, W, 3]; the PNG bytes of those in `keep`."""
        verdicts, artifact = _judged([self.evaluation, self.artifact], pixels, self.device)
        style, obj, features, arrays = (values.numpy() for values in (verdicts.style, verdicts.object, artifact.features, pixels))
        digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        encoded = [png(array) if kept else None for array, kept in zip(arrays, keep, strict=True)]
        return list(map(Verdict, style, obj, features, digests, encoded))

    def outcomes(self, requests: Sequence[GenerationRequest], verdicts: Sequence[Verdict | None], keep: Sequence[bool]) -> pd.DataFrame:
        """One row per picture, in order, null where there is no verdict; without the PNG bytes of those not in `keep`."""
        styles, objects = self.evaluation.styles, self.evaluation.objects
        return pd.DataFrame({
            "request": [r.id for r in requests],
            "prompt": [r.prompt for r in requests],
            "style": [r.style for r in requests],
            "object": [r.object for r in requests],
            "seed": [r.seed for r in requests],
            "style_pred": [styles[v.style.argmax()] if v else None for v in verdicts],
            "object_pred": [objects[v.object.argmax()] if v else None for v in verdicts],
            "style_logits": [v.style if v else None for v in verdicts],
            "object_logits": [v.object if v else None for v in verdicts],
            "features": [v.features if v else None for v in verdicts],
            "sha256": [v.sha256 if v else None for v in verdicts],
            "png": [v.png if v and kept else None for v, kept in zip(verdicts, keep, strict=True)],
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

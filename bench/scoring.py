"""Pictures to stored outcomes: verdicts, logits, features, digests. Metrics come later and see only these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.codec import Codec, through
from bench.config import Images
from bench.errors import unknown
from bench.examiners import load_examiners
from bench.interfaces import Classifier, ClassifierOutput, Examiner, FeatureNetwork
from bench.registry import CLASSIFIERS, load_object
from bench.suites.suite import JudgeFiles, JudgeRole, Suite
from bench.types import GenerationRequest, Target

PICTURES = 64
"""What is decoded and judged at once."""
FEATURES = "features_"
"""Begins the name of a column of features; the network's name ends it."""
SAMPLED_PICTURES = 12


def load_judge(suite: Suite, role: JudgeRole, device: torch.device) -> Classifier:
    """The network that the suite names for a role."""
    return cast(Classifier, _load(suite.judge(role), device))


def load_networks(suite: Suite, device: torch.device) -> dict[str, FeatureNetwork]:
    """Those of the suite's feature networks that are here, by name."""
    return {name: _load(own, device) for name, own in suite.networks().items()}


def _load(files: JudgeFiles, device: torch.device) -> Any:
    if files.kind not in CLASSIFIERS:
        raise unknown("classifier", files.kind, CLASSIFIERS)
    return load_object(CLASSIFIERS[files.kind])(files.folder, device, **files.arguments)


def judge_all(judge: Classifier, pixels: Tensor) -> ClassifierOutput:
    """Verdicts on uint8 [n, H, W, 3], on the CPU."""
    return ClassifierOutput(*_in_batches(judge, pixels, judge.batch))


def features_of(network: FeatureNetwork, pixels: Tensor) -> np.ndarray[Any, Any]:
    """[n, d] of uint8 [n, H, W, 3], in the precision in which they are stored."""
    (found,) = _in_batches(lambda part: (network.features(part),), pixels, network.batch)
    return np.asarray((found.half() if network.stores_half else found).numpy())


@torch.no_grad()
def _in_batches(call: Callable[[Tensor], Sequence[Tensor]], pixels: Tensor, batch: int) -> list[Tensor]:
    """In batches of one size, the last one filled up, so that neighbours cannot matter."""
    parts = [[values[: len(set(places))].cpu() for values in call(pixels[places])] for places in _full(len(pixels), batch)]
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def _full(count: int, batch: int) -> list[list[int]]:
    """Places of so many pictures in batches of one size: the last is filled up with its last one."""
    return [[min(start + k, count - 1) for k in range(batch)] for start in range(0, count, batch)]


@torch.no_grad()
def _examined(examiner: Examiner, pixels: Tensor, prompts: Sequence[str]) -> list[float]:
    """As `_in_batches`."""
    found: list[float] = []
    for places in _full(len(pixels), examiner.batch):
        found += examiner.examine(pixels[places], [prompts[i] for i in places])[: len(set(places))]
    return found


class Verdict(NamedTuple):
    """What is stored of a picture; logits float32, in the order of the judge's classes."""

    style: np.ndarray[Any, Any]
    object: np.ndarray[Any, Any]
    features: Mapping[str, np.ndarray[Any, Any]]
    """By network."""
    more: Mapping[str, float]
    """By the column of each examiner."""
    sha256: str
    """Of the pixels that were judged."""
    picture: bytes | None
    """A PNG or JPEG file."""


@dataclass(frozen=True)
class Scorer:
    """The judges of a run, loaded once: one network for verdicts, others for features."""

    evaluation: Classifier
    networks: Mapping[str, FeatureNetwork]
    codec: Codec
    examiners: Sequence[Examiner] = ()

    @classmethod
    def load(cls, suite: Suite, device: torch.device, examiners: Sequence[str] = ()) -> Scorer:
        """Those of a suite, and what else is asked for (`bench.examiners`)."""
        others = load_examiners(examiners, suite, device) if examiners else ()
        return cls(load_judge(suite, "evaluation", device), load_networks(suite, device), suite.codec, others)

    @property
    def digests(self) -> dict[str, str]:
        """For the identity of units."""
        networks = {name: network.digest for name, network in self.networks.items()}
        return {"evaluation": self.evaluation.digest, **networks, **{one.column: one.digest for one in self.examiners}}

    def judge(self, pixels: Tensor, keep: Sequence[bool], prompts: Sequence[str]) -> list[Verdict]:
        """All that is stored of each picture of uint8 [n, H, W, 3], judged as the codec leaves it; the bytes of those in `keep`."""
        arrays, files = through(pixels.numpy(), self.codec, list(keep))
        return self.judge_files(torch.from_numpy(arrays), files, prompts)

    def judge_files(self, pixels: Tensor, files: Sequence[bytes | None], prompts: Sequence[str]) -> list[Verdict]:
        """The same of pictures that have been through the codec; `files` are kept beside."""
        verdicts = judge_all(self.evaluation, pixels)
        columns = {name: features_of(network, pixels) for name, network in self.networks.items()}
        features = [{name: column[i] for name, column in columns.items()} for i in range(len(pixels))]
        digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in pixels.numpy()]
        said = [_examined(one, pixels, prompts) for one in self.examiners]
        more = [{one.column: values[i] for one, values in zip(self.examiners, said, strict=True)} for i in range(len(pixels))]
        return list(map(Verdict, verdicts.style.numpy(), verdicts.object.numpy(), features, more, digests, files))

    def outcomes(self, requests: Sequence[GenerationRequest], verdicts: Sequence[Verdict | None], keep: Sequence[bool]) -> pd.DataFrame:
        """One row per picture, in order, null where there is no verdict; without the bytes of those not in `keep`."""
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
            **{f"{FEATURES}{name}": [v.features[name] if v else None for v in verdicts] for name in self.networks},
            **{one.column: [v.more[one.column] if v else None for v in verdicts] for one in self.examiners},
            "sha256": [v.sha256 if v else None for v in verdicts],
            "picture": [v.picture if v and kept else None for v, kept in zip(verdicts, keep, strict=True)],
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

"""What is found out about pictures beside the judges' verdicts, where a run asks for it: a number a picture.

`clip-score` fits picture and prompt; a judge of artifacts says which pictures are broken: `qwen2-vl`, or any function of
one's own, given as `path/to/file.py:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bench.assets import locate
from bench.errors import BenchError, unknown
from bench.files import sha256_text
from bench.interfaces import Examiner
from bench.registry import CLASSIFIERS, file_module, load_object
from bench.suites.suite import Suite

EXAMINERS = {"clip-score": "clip", "qwen2-vl": "qwen2-vl"}
"""Name → the asset that it needs."""


class OwnArtifacts:
    """A function `(pixels uint8 [n, H, W, 3] as a numpy array, prompts) → n truth values`, True for a broken picture."""

    column, batch = "artifact", 16

    def __init__(self, function: Callable[..., Any], digest: str) -> None:
        self.function, self.digest = function, digest

    def examine(self, pixels: Tensor, prompts: Sequence[str]) -> list[float]:
        """See `Examiner.examine`. BenchError for another number of answers."""
        found = [float(bool(answer)) for answer in self.function(pixels.numpy(), list(prompts))]
        if len(found) != len(pixels):
            raise BenchError(f"The judge of artifacts gives {len(found)} answers on {len(pixels)} pictures: it must give one for each.")
        return found


def load_examiners(names: Sequence[str], suite: Suite, device: torch.device) -> list[Examiner]:
    """By name, or a file and its function. BenchError for what is unknown, and for two that say the same of a picture."""
    found = [_load(name, suite, device) for name in names]
    if len({one.column for one in found}) < len(found):
        raise BenchError(f"--examine {','.join(names)}: two of them say the same of a picture; leave one out.")
    return found


def _load(name: str, suite: Suite, device: torch.device) -> Examiner:
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _own(Path(path), function)
    if name not in EXAMINERS:
        raise unknown("examiner", name, EXAMINERS)
    if EXAMINERS[name] not in suite.files:
        raise BenchError(f"{name} needs the file {EXAMINERS[name]}, which {suite.key} does not name: use a function of your own.")
    return cast(Examiner, load_object(CLASSIFIERS[name])(locate(suite.files[EXAMINERS[name]]), device))


def _own(path: Path, function: str) -> Examiner:
    try:
        source = path.read_text(encoding="utf-8")
        return OwnArtifacts(getattr(file_module(path), function), sha256_text(f"{function}\n{source}"))
    except Exception as error:  # it is the user's own code
        raise BenchError(f"{path}:{function} cannot be used ({type(error).__name__}: {error}): give a file and its function.") from error

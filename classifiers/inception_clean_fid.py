"""The Inception network and the resizing of clean-fid (arXiv:2104.11222), through that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.resize import build_resizer
from torch import Tensor

from bench.api import BenchError, in_threads, sha256_file


class CleanFidInception:
    """2,048 features; FID and KID from them compare with clean-fid's `mode="clean"`."""

    batch, stores_half = 16, True

    def __init__(self, network: Any, digest: str, device: torch.device) -> None:
        self.network, self.digest, self.device = network, digest, device
        self.resize = build_resizer("clean")

    def features(self, pixels: Tensor) -> Tensor:
        """uint8 [n, H, W, 3] → float32 [n, 2048]."""
        resized = np.stack(in_threads(self.resize, pixels.numpy()))
        image = torch.from_numpy(resized).to(self.device).permute(0, 3, 1, 2)
        return self.network.layers.forward((image - 128) / 128).view(len(pixels), -1).float()  # as clean-fid's InceptionV3W


def load(path: Path, device: torch.device) -> CleanFidInception:
    """Read the published TorchScript file: a program, which whoever names `path` must have held against its published digest."""
    try:
        network = torch.jit.load(path, map_location=device)
    except Exception as error:  # torch raises its own kinds for one fact
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(
            f"{path} is not clean-fid's Inception network ({first}): fetch it again (python -m bench assets fetch --again NAME)."
        ) from error
    return CleanFidInception(network.eval(), sha256_file(path), device)

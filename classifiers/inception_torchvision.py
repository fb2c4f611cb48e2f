"""torchvision's Inception v3 as the published FID of UnlearnCanvas uses it (arXiv:2402.11846, public code `fid.py`).

Its numbers compare with that code alone: other weights (ImageNet classification) and another resizing than FID's, and inputs
scaled to [−1, 1] that the network's own `transform_input` scales again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models import inception_v3

from bench.api import BenchError, sha256_file

FIRST, SECOND = 512, 299


class TorchvisionInception:
    """2,048 averaged features of the last mixed block."""

    batch, stores_half = 16, True

    def __init__(self, network: torch.nn.Module, digest: str) -> None:
        network.fc = torch.nn.Identity()
        self.network, self.digest = network, digest

    def features(self, pixels: Tensor) -> Tensor:
        """uint8 [n, H, W, 3] → float32 [n, 2048]. Bilinear without antialiasing to 512 px in whole levels, then to 299 px, as OpenCV."""
        x = pixels.to(next(self.network.parameters()).device).permute(0, 3, 1, 2).float()
        if x.shape[2:] != (FIRST, FIRST):
            x = interpolate(x, (FIRST, FIRST), mode="bilinear", align_corners=False).round().clamp(0, 255)
        x = interpolate(x / 255, (SECOND, SECOND), mode="bilinear", align_corners=False)
        return self.network(x * 2 - 1)


def load(path: Path, device: torch.device) -> TorchvisionInception:
    """Read torchvision's published weights. BenchError for anything else."""
    network = inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises pickle's, zipfile's and its own kinds for one fact
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(
            f"{path} does not hold torchvision's Inception v3 ({first}): fetch it again (python -m bench assets fetch --again NAME)."
        ) from error
    return TorchvisionInception(network.to(device).eval().requires_grad_(False), sha256_file(path))

"""One timm backbone with a style head and an object head, in a folder of `config.json` and `model.safetensors`.

The judges of minicanvas are of this kind; each also knows the class "no object". A judge is anything with the attributes
and `__call__` of `bench.interfaces.Classifier`, so that two separate single-head networks (UnlearnCanvas) fit too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.api import BenchError, ClassifierOutput, sha256_file, sha256_text


class TwoHeadClassifier(nn.Module):
    """`architecture` is a timm name, `arguments` its keyword arguments; input pixels are scaled to [-1, 1]."""

    batch, stores_half = 64, False

    def __init__(self, architecture: str, arguments: Mapping[str, Any], styles: Sequence[str], objects: Sequence[str]) -> None:
        super().__init__()
        self.architecture, self.arguments = architecture, dict(arguments)
        self.styles, self.objects = tuple(styles), tuple(objects)
        self.digest = ""
        self.backbone = timm.create_model(architecture, pretrained=False, num_classes=0, **self.arguments)
        # Not every timm backbone pools to `num_features` (MobileNets widen after pooling), so the width is measured.
        with torch.no_grad():
            self.width = self.backbone.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        self.style_head = nn.Linear(self.width, len(self.styles))
        self.object_head = nn.Linear(self.width, len(self.objects))

    def features(self, pixels: Tensor) -> Tensor:
        """uint8 [n, H, W, 3] → pooled features float32 [n, width]."""
        return self(pixels).features

    def forward(self, pixels: Tensor) -> ClassifierOutput:
        """uint8 [n, H, W, 3] → float32 logits [n, styles], [n, objects] and pooled features [n, width]."""
        image = pixels.to(self.style_head.weight.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = self.backbone(image)
        return ClassifierOutput(self.style_head(features).float(), self.object_head(features).float(), features.float())

    def save(self, folder: Path) -> None:
        """Write the folder, weights in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "architecture": self.architecture, "arguments": self.arguments, "styles": self.styles, "objects": self.objects,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file({k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path, device: torch.device) -> TwoHeadClassifier:
    """Read a folder written by `save`, in float32 and evaluation mode. Raises BenchError where it is missing or damaged."""
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        model = TwoHeadClassifier(**config)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise BenchError(
            f"The classifier in {folder} cannot be read ({_in_one_line(error)}): restore the folder or build it again."
        ) from error
    except Exception as error:  # safetensors raises its own base-class exception for a truncated file
        if type(error).__module__.startswith("safetensors"):
            raise BenchError(f"{folder / 'model.safetensors'} is damaged ({error}): restore it or build it again.") from error
        raise
    # The order of the classes is in the configuration: a judge is both files.
    model.digest = sha256_text(sha256_file(folder / "config.json") + sha256_file(folder / "model.safetensors"))
    return model.to(device).eval().requires_grad_(False)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""CLIP score (arXiv:2104.08718): how well a picture fits the prompt it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from bench.api import BenchError, sha256_text, tree_digest


class ClipScore:
    """100 · max(cos(image, text), 0), as torchmetrics' CLIPScore."""

    column, batch = "clip", 16

    def __init__(self, model: CLIPModel, processor: CLIPProcessor, digest: str) -> None:
        self.model, self.processor, self.digest = model, processor, digest

    def examine(self, pixels: Tensor, prompts: Sequence[str]) -> list[float]:
        """uint8 [n, H, W, 3] and their prompts → scores from 0 to 100. Prompts are cut to what the text encoder takes."""
        device = self.model.device
        images = self.processor.image_processor(list(pixels.numpy()), return_tensors="pt").to(device)
        texts = self.processor.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        image = _pooled(self.model.get_image_features(**images))
        text = _pooled(self.model.get_text_features(**texts))
        cosine = torch.nn.functional.cosine_similarity(image, text)
        return (100 * cosine.clamp(min=0)).tolist()


def _pooled(found: object) -> Tensor:
    """Versions of transformers differ in whether features come alone."""
    return found if isinstance(found, Tensor) else found.pooler_output  # type: ignore[attr-defined]


def load(folder: Path, device: torch.device) -> ClipScore:
    """A CLIP model's folder as on the Hub. BenchError if it is none."""
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers, safetensors and tokenizers raise their own kinds for one fact
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(f"{folder} is no CLIP model ({first}): fetch it again (python -m bench assets fetch clip).") from error
    return ClipScore(model.to(device).eval().requires_grad_(False), processor, sha256_text("clip-score 1\n" + tree_digest(folder)))

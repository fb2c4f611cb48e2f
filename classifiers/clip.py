"""CLIP (arXiv:2103.00020): how well a picture fits its prompt, and a judge of any styles and objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from bench.api import BenchError, ClassifierOutput, sha256_text, tree_digest

STYLE, OBJECT = "an image in {} style", "an image of {}"
"""What the judge compares pictures with."""


class Clip:
    """Unit features of pictures and texts."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Read a folder as on the Hub. BenchError if it is none."""
        try:
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
            self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers, safetensors and tokenizers raise their own kinds for one fact
            first = " ".join(str(error).split())[:200] or type(error).__name__
            raise BenchError(f"{folder} is no CLIP model ({first}): fetch it again (python -m bench assets fetch clip --again).") from error
        self.model.to(device).eval().requires_grad_(False)
        self.digest = tree_digest(folder)

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """uint8 [n, H, W, 3] → float32 [n, d]."""
        inputs = self.processor.image_processor(list(pixels.numpy()), return_tensors="pt").to(self.model.device)
        return _unit(self.model.get_image_features(**inputs))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [n, d]; texts are cut to what the encoder takes."""
        inputs = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return _unit(self.model.get_text_features(**inputs))


def _unit(found: object) -> Tensor:
    """Versions of transformers differ in whether features come alone."""
    return normalize(found if isinstance(found, Tensor) else found.pooler_output, dim=-1)  # type: ignore[attr-defined]


class ClipScore:
    """100 · max(cos(image, text), 0) (arXiv:2104.08718), as torchmetrics' CLIPScore."""

    column, batch = "clip", 16

    def __init__(self, clip: Clip) -> None:
        self.clip, self.digest = clip, sha256_text(f"clip-score 1\n{clip.digest}")

    def examine(self, pixels: Tensor, prompts: Sequence[str]) -> list[float]:
        """uint8 [n, H, W, 3] and their prompts → scores from 0 to 100."""
        cosine = (self.clip.images(pixels) * self.clip.texts(prompts)).sum(-1)
        return (100 * cosine.clamp(min=0)).tolist()


class ClipZeroShot:
    """The class whose text is nearest; logits are cosines times the model's own scale.

    For models and concepts that no one has trained a classifier for. It is a weaker judge than a trained one: look at the unedited
    model's accuracies before anything else.
    """

    batch = 16

    def __init__(self, clip: Clip, styles: Sequence[str], objects: Sequence[str]) -> None:
        self.clip, self.styles, self.objects = clip, tuple(styles), tuple(objects)
        self.digest = sha256_text("\n".join([STYLE, OBJECT, *styles, "", *objects, clip.digest]))
        named = ((STYLE, self.styles), (OBJECT, self.objects))
        self.texts = [clip.texts([template.format(name.replace("_", " ")) for name in names]) for template, names in named]

    def __call__(self, pixels: Tensor) -> ClassifierOutput:
        """uint8 [n, H, W, 3] → float32 logits [n, styles], [n, objects] and unit features [n, d]."""
        features = self.clip.images(pixels)
        scale = self.clip.model.logit_scale.exp()
        style, obj = (scale * features @ texts.T for texts in self.texts)
        return ClassifierOutput(style, obj, features)


def load_score(folder: Path, device: torch.device) -> ClipScore:
    """See `Clip`."""
    return ClipScore(Clip(folder, device))


def load_zero_shot(folder: Path, device: torch.device, styles: Sequence[str], objects: Sequence[str]) -> ClipZeroShot:
    """See `Clip`."""
    return ClipZeroShot(Clip(folder, device), styles, objects)

"""Qwen2-VL as a judge of artifacts, in the place that PER's authors gave it (arXiv:2606.31699).

Their question, their pictures and their rule of decision are not public: the question here is this project's own, and part of the
judge's digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from bench.api import BenchError, sha256_text, tree_digest

QUESTION = (
    "Look at the quality of this picture, not at what it shows. Does it have visible artifacts: noise, smeared or torn regions,"
    " repeated patches, garish colours or shapes that are nothing? Answer with one word, Yes or No."
)


class QwenArtifacts:
    """An artifact is where Yes is likelier than No as the first token of the answer: nothing is sampled."""

    column, batch = "artifact", 4

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: AutoProcessor, digest: str) -> None:
        self.model, self.processor, self.digest = model, processor, digest
        self.yes, self.no = (_first_token(processor, word) for word in ("Yes", "No"))

    def examine(self, pixels: Tensor, prompts: Sequence[str]) -> list[float]:
        """uint8 [n, H, W, 3] → 1.0 for an artifact, else 0.0; the prompts are not looked at."""
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        text = self.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        images = list(pixels.permute(0, 3, 1, 2))
        inputs = self.processor(text=[text] * len(images), images=images, return_tensors="pt", padding=True, padding_side="left")
        logits = self.model(**inputs.to(self.model.device)).logits[:, -1]
        return (logits[:, self.yes] > logits[:, self.no]).float().tolist()


def _first_token(processor: AutoProcessor, word: str) -> int:
    return int(processor.tokenizer(word, add_special_tokens=False).input_ids[0])


def load(folder: Path, device: torch.device) -> QwenArtifacts:
    """A Qwen2-VL folder as on the Hub, in bfloat16 on a GPU. BenchError if it is none."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        model = Qwen2VLForConditionalGeneration.from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers, safetensors and tokenizers raise their own kinds for one fact
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(
            f"{folder} is no Qwen2-VL model ({first}): fetch it again (python -m bench assets fetch qwen2-vl --again)."
        ) from error
    digest = sha256_text(f"{QUESTION}\n{dtype}\n{tree_digest(folder)}")
    return QwenArtifacts(model.to(device).eval().requires_grad_(False), processor, digest)

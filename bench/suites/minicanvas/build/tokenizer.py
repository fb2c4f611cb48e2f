"""The CLIP tokenizer of minicanvas: byte-pair merges learned on its own captions, nothing else in the vocabulary."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 24
MERGES = 700
# Pieces of words that are always merged away would never be trained; BPE dropout (Provilkov et al. 2020) shows them.
DROPOUT = 0.15


def train_tokenizer(captions: Sequence[str], folder: Path) -> CLIPTokenizer:
    """Learn `MERGES` merges from the captions, save a tokenizer folder that `CLIPTokenizer.from_pretrained` loads."""
    raw = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()])
    characters = sorted({c for caption in captions for c in caption.lower() if c != " "})
    punctuation = set(characters) & set(string.punctuation)
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(characters) + MERGES, special_tokens=[BOS, EOS], end_of_word_suffix="</w>", show_progress=False
    )
    raw.train_from_iterator(captions, trainer)
    model = json.loads(raw.to_str())["model"]
    # Punctuation is always a word of its own, so its form inside a word ("," beside ",</w>") could never be trained.
    entries = [entry for entry in model["vocab"] if entry not in punctuation]
    tokenizer = CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)}, merges=[tuple(m) for m in model["merges"]],
        bos_token=BOS, eos_token=EOS, unk_token=EOS, pad_token=EOS, model_max_length=MAX_TOKENS,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return tokenizer


def encode_for_training(tokenizer: CLIPTokenizer, captions: Sequence[str], seed: int) -> torch.Tensor:
    """int64 [n, MAX_TOKENS]; one caption in five is split with BPE dropout. Raises if a vocabulary entry never occurs."""
    kwargs = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = tokenizer(list(captions), **kwargs).input_ids
    split = np.flatnonzero(np.random.default_rng(seed).random(len(captions)) < 0.2).tolist()
    model = tokenizer.backend_tokenizer.model
    model.dropout = DROPOUT
    tokenizer.backend_tokenizer.model = model
    ids[torch.tensor(split)] = tokenizer([captions[i] for i in split], **kwargs).input_ids
    model.dropout = None
    tokenizer.backend_tokenizer.model = model
    unseen = torch.bincount(ids.flatten(), minlength=len(tokenizer)) == 0
    if unseen.any():
        names = tokenizer.convert_ids_to_tokens(unseen.nonzero().flatten().tolist())
        raise RuntimeError(f"{len(names)} tokens occur in no training caption, such as {names[:5]}: use more captions or fewer merges.")
    return ids

"""Low-rank adapters inside the UNet's transformer blocks, and how strongly a prompt lets each of them act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from bench.api import ActivationEdit, Cond, DiffusionModel, EditBank, PlainText, Role, Slots, TextEdit, content_hash

FEW = 4
"""Ranks of all adapters of an edit together up to which adding them one by one takes less time than one product."""


class Factors(NamedTuple):
    """One adapter at one module: `x_out + up (down x_in)`."""

    down: Tensor
    """float32 [r, in]."""
    up: Tensor
    """float32 [out, r], any scale such as alpha / r multiplied in."""


def adapted_modules(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every Linear and Conv2d within blocks that read text, by name: where SPM has its adapters."""
    blocks = [name for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)]
    return {
        name: module for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and any(name.startswith(f"{block}.") for block in blocks)
    }  # fmt: skip


def tokens(x: Tensor) -> Tensor:
    """[S, C, H, W] as [S, H·W, C]; [S, tokens, C] as it is."""
    return x.flatten(2).mT if x.ndim == 4 else x


def like(delta: Tensor, x: Tensor) -> Tensor:
    """Inverse of `tokens`: [S, P, C] in the shape of `x`."""
    return delta.mT.reshape(x.shape) if x.ndim == 4 else delta


def slices(widths: Sequence[int]) -> list[slice]:
    """Where each of so many columns is, one after the other."""
    return [slice(start, end) for start, end in pairwise(accumulate(widths, initial=0))]


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankAdapters(ActivationEdit):
    """`x_out + Σ_a s_a up_a (down_a x_in)` at Linear and 1 × 1 Conv2d modules; s_a is the slot's `Slots.scale`, 1 where it has none."""

    hookpoints: tuple[str, ...]
    inputs: tuple[int, ...]
    """Width of each module's input."""
    outputs: tuple[int, ...]
    down: Tensor
    """float32 [A, r, Σ inputs], module after module."""
    up: Tensor
    """float32 [A, r, Σ outputs]."""

    @classmethod
    def of(cls, adapters: Sequence[Mapping[str, Factors]]) -> LowRankAdapters:
        """From adapters by module, all with the same modules. Smaller ranks are filled up with zeros."""
        names = tuple(adapters[0])
        rank = max(factors.down.shape[0] for own in adapters for factors in own.values())
        down = torch.stack([torch.cat([_padded(own[name].down, rank) for name in names], 1) for own in adapters])
        up = torch.stack([torch.cat([_padded(own[name].up.T, rank) for name in names], 1) for own in adapters])
        first = adapters[0].values()
        return cls(
            hookpoints=names, inputs=tuple(f.down.shape[1] for f in first), outputs=tuple(f.up.shape[0] for f in first), down=down, up=up
        )

    @property
    def bank(self) -> str:
        """Only edits of one shape are stacked: a wider neighbour would change the order in which products are summed."""
        return content_hash([*self.down.shape[:2], *self.hookpoints])

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> AdapterBank:
        """See `ActivationEdit.stack`."""
        return AdapterBank([edit for edit in edits if isinstance(edit, cls)])


class AdapterBank(EditBank):
    """Many `LowRankAdapters` of the same modules, number of adapters and rank."""

    down: Tensor
    up: Tensor

    def __init__(self, edits: Sequence[LowRankAdapters]) -> None:
        super().__init__()
        first = edits[0]
        self.count, self.rank, _ = first.down.shape
        self.register_buffer("down", torch.stack([edit.down.flatten(0, 1) for edit in edits]))
        self.register_buffer("up", torch.stack([edit.up.flatten(0, 1) for edit in edits]))
        self.places = dict(zip(first.hookpoints, zip(slices(first.inputs), slices(first.outputs), strict=True), strict=True))

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        """See `EditBank.edit`."""
        read, written = self.places[hookpoint]
        which, edited = slots.which.clamp(min=0), (slots.which >= 0)[:, None, None]
        down, up = self.down[which, :, read].to(x_in.dtype), self.up[which, :, written].to(x_out.dtype)
        hidden = tokens(x_in) @ down.mT * self._scale(slots.scale).to(x_out.dtype)[:, None, :]
        if hidden.shape[2] > FEW:
            return like(torch.where(edited, torch.baddbmm(tokens(x_out), hidden, up), tokens(x_out)), x_out)
        # Added up element by element, so that no second tensor of this size is made: 0 · −1 = −0, and x + −0 is x bit for bit.
        hidden, up, new = torch.where(edited, hidden, 0.0), torch.where(edited, up, -1.0), tokens(x_out)
        for k in range(hidden.shape[2]):
            new = torch.addcmul(new, hidden[..., k : k + 1], up[:, k : k + 1])
        return like(new, x_out)

    def _scale(self, scale: Tensor) -> Tensor:
        """float32 [S, A · r]."""
        missing = max(0, self.count - scale.shape[1])
        return nn.functional.pad(scale, (0, missing), value=1.0)[:, : self.count].repeat_interleave(self.rank, 1)


@dataclass(frozen=True)
class FacilitatedTransport(TextEdit):
    """Plain text; every adapter acts as strongly as the prompt is like a text that it was trained on (Lyu et al. 2024, sec. 3.4).

    `γ_a = max(cos(vec c_prompt, vec c_text), |tokens ∩| / |tokens of the text|)`, the largest over the adapter's texts, with the
    whole text states [L · D] as vectors and tokens without marks, as in the public code (`infer_spm.py`). That code sets γ once a
    prompt and then samples, so that it holds for the unconditional half too.
    """

    texts: tuple[str, ...]
    """Per adapter, its texts with commas between, as in the metadata of published files."""
    power: int = 1
    """2: the public code, which multiplies `lora_down` and `lora_up` by γ each."""
    negative_prompt: str = ""
    """The unconditional text."""

    def encode(self, model: DiffusionModel, texts: Sequence[str], role: Role, steps: int) -> list[Cond]:
        """See `TextEdit.encode`; texts in other roles leave the strength to the prompt."""
        plain = PlainText().encode(model, [self.negative_prompt] * len(texts) if role == "unconditional" else texts, role, steps)
        if role != "conditional":
            return plain
        known = [[self._seen(model, text) for text in own.split(",")] for own in self.texts]
        found = []
        for cond, text in zip(plain, texts, strict=True):
            prompt = self._seen(model, text)
            scale = torch.stack([torch.stack([_likeness(prompt, one) for one in own]).max() for own in known]).cpu()
            found.append(replace(cond, adapter_scale=scale**self.power))
        return found

    @staticmethod
    def _seen(model: DiffusionModel, text: str) -> tuple[Tensor, frozenset[int]]:
        """The states [L · D] of a text and its tokens."""
        ids = set(model.tokenize([text]).flatten().tolist()) - set(model.tokenizer.all_special_ids)
        return model.text_states([text]).flatten(), frozenset(ids)


def _likeness(prompt: tuple[Tensor, frozenset[int]], text: tuple[Tensor, frozenset[int]]) -> Tensor:
    return torch.cosine_similarity(prompt[0], text[0], dim=0).clamp(min=len(prompt[1] & text[1]) / max(1, len(text[1])))


def _padded(factor: Tensor, rank: int) -> Tensor:
    """[r, n] → [rank, n]."""
    return nn.functional.pad(factor, (0, 0, 0, rank - len(factor)))

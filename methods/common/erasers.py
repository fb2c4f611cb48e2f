"""Receler's erasers: small networks after cross-attention layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.api import ActivationEdit, EditBank, Slots, content_hash
from methods.common.adapters import slices


@dataclass(frozen=True, eq=False, kw_only=True)
class Erasers(ActivationEdit):
    """`x + up · gelu(down · x + b) + c` of the output x of layers, in every picture and at every step.

    That the erasers read and change the layers' outputs, and that their activation is GELU, is UNVERIFIED against Receler's code.
    """

    hookpoints: tuple[str, ...]
    widths: tuple[int, ...]
    """Channels of each layer's output."""
    down: Tensor
    """float32 [r, Σ widths], layer after layer."""
    down_bias: Tensor
    """float32 [r, layers]."""
    up: Tensor
    """float32 [r, Σ widths]."""
    up_bias: Tensor
    """float32 [Σ widths]."""

    @classmethod
    def of(cls, erasers: Mapping[str, Mapping[str, Tensor]]) -> Erasers:
        """From layer → down.weight [r, C], down.bias [r], up.weight [C, r], up.bias [C], with one r."""
        own = list(erasers.values())
        return cls(
            hookpoints=tuple(erasers), widths=tuple(one["up.bias"].shape[0] for one in own),
            down=torch.cat([one["down.weight"] for one in own], 1), down_bias=torch.stack([one["down.bias"] for one in own], 1),
            up=torch.cat([one["up.weight"].T for one in own], 1), up_bias=torch.cat([one["up.bias"] for one in own]),
        )  # fmt: skip

    @property
    def bank(self) -> str:
        """Only edits of one shape are stacked: a wider neighbour would change the order in which products are summed."""
        return content_hash([self.down.shape[0], *self.hookpoints])

    @classmethod
    def stack(cls, edits: Sequence[ActivationEdit]) -> EraserBank:
        """See `ActivationEdit.stack`."""
        return EraserBank([edit for edit in edits if isinstance(edit, cls)])


class EraserBank(EditBank):
    """Many `Erasers` of the same layers and rank."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __init__(self, edits: Sequence[Erasers]) -> None:
        super().__init__()
        for name in ("down", "down_bias", "up", "up_bias"):
            self.register_buffer(name, torch.stack([getattr(edit, name) for edit in edits]))
        self.names, self.places = edits[0].hookpoints, slices(edits[0].widths)

    def edit(self, hookpoint: str, x_in: Tensor, x_out: Tensor, slots: Slots, state: dict[str, Tensor]) -> Tensor:
        """See `EditBank.edit`; `x_out` is [S, tokens, C]."""
        number, which = self.names.index(hookpoint), slots.which.clamp(min=0)
        place, dtype = self.places[number], x_out.dtype
        down, up, up_bias = (table[..., place][which].to(dtype) for table in (self.down, self.up, self.up_bias))
        down_bias = self.down_bias[..., number][which].to(dtype)
        hidden = nn.functional.gelu(torch.baddbmm(down_bias[:, None], x_out, down.mT))
        edited = x_out + torch.baddbmm(up_bias[:, None], hidden, up)
        return torch.where((slots.which >= 0)[:, None, None], edited, x_out)

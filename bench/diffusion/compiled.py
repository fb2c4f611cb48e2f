"""The UNet as one compiled graph, whatever edits act in it.

What happens at a hook point is one opaque operator of the graph, which asks whoever samples now. So edits may come and go
without another compilation; only a hook point that no earlier run had needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Act = Callable[[str, Tensor, Tensor], Tensor]


class _Now:
    """Who acts at hook points while a compiled UNet runs."""

    act: Act
    acting = False
    """Traced as a constant: without it, hooks leave everything as it is."""


@torch.library.custom_op("unlearnbench::act", mutates_args=())
def _act(name: str, x_in: Tensor, x_out: Tensor) -> Tensor:
    new = _Now.act(name, x_in, x_out)
    return x_out.clone() if new is x_out else new  # an operator's output must not be its input


@_act.register_fake
def _(name: str, x_in: Tensor, x_out: Tensor) -> Tensor:
    return torch.empty_like(x_out)


def _hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    if not _Now.acting:
        return output
    x_in = args[0] if args else kwargs["hidden_states"]
    if isinstance(output, tuple):
        return (torch.ops.unlearnbench.act(name, x_in, output[0]), *output[1:])
    return torch.ops.unlearnbench.act(name, x_in, output)


class CompiledUNet:
    """Compiles at the first call, and again when it is used with other hook points or another shape."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self.names: set[str] = set()
        self.forward: Callable[..., Any] = torch.compile(unet, dynamic=False, fullgraph=True)

    @contextmanager
    def acting(self, hookpoints: set[str], act: Act) -> Iterator[Callable[..., Any]]:
        """The forward pass with `act(name, input, output)` in place of every hook point's output."""
        modules = dict(self.unet.named_modules())
        for name in sorted(hookpoints - self.names):
            modules[name].register_forward_hook(partial(_hook, name), with_kwargs=True)
        if not hookpoints <= self.names:
            self.names |= hookpoints
            torch._dynamo.reset()  # hooks are no part of its guards
            self.forward = torch.compile(self.unet, dynamic=False, fullgraph=True)
        _Now.act, _Now.acting = act, True
        try:
            yield self.forward
        finally:
            _Now.acting = False

"""How someone acts at hook points of a UNet, eager or compiled.

In the compiled one what happens at a hook point is one opaque operator of the graph, which asks whoever samples now. So edits
may come and go without another compilation; only a hook point that no earlier run had needs one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.diffusion.attention import use_small_attention

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


def _replaced(act: Act, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A block's output, a tensor or a tuple that begins with one, after `act`."""
    x_in = args[0] if args else kwargs["hidden_states"]
    if isinstance(output, tuple):
        return (act(name, x_in, output[0]), *output[1:])
    return act(name, x_in, output)


@contextmanager
def hooked(unet: nn.Module, hookpoints: set[str], act: Act) -> Iterator[None]:
    """Let `act(name, input, output)` replace the output of every hook point."""

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return _replaced(act, name, args, kwargs, output)

    modules = dict(unet.named_modules())
    handles = [modules[name].register_forward_hook(partial(hook, name), with_kwargs=True) for name in sorted(hookpoints)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    return _replaced(torch.ops.unlearnbench.act, name, args, kwargs, output) if _Now.acting else output


class CompiledUNet:
    """Compiles at the first call, and again for another shape.

    Each of its hook points is in the graph from the start, used or not: an operator there keeps the compiler from fusing across it,
    so that with other hook points the same pictures would have other bits.
    """

    def __init__(self, unet: nn.Module, hookpoints: Iterable[str]) -> None:
        use_small_attention(unet)
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # of a version number, in diffusers
        self.unet, self.names = unet, frozenset(hookpoints)
        modules = dict(unet.named_modules())
        for name in sorted(self.names):
            modules[name].register_forward_hook(partial(_hook, name), with_kwargs=True)
        torch._dynamo.reset()  # hooks are no part of its guards
        self.forward: Callable[..., Any] = torch.compile(unet, dynamic=False, fullgraph=True)

    @contextmanager
    def acting(self, hookpoints: set[str], act: Act) -> Iterator[Callable[..., Any]]:
        """The forward pass with `act(name, input, output)` in place of the output of these hook points, all of its own."""
        _Now.act, _Now.acting = (lambda name, x_in, x_out: act(name, x_in, x_out) if name in hookpoints else x_out), True
        try:
            yield self.forward
        finally:
            _Now.acting = False

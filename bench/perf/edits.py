"""One UNet call with active edits beside one without, and beside the published hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.call import Call, Task, stack_edits
from bench.diffusion.hooks import hooked
from bench.diffusion.rows import Row, encode
from bench.diffusion.sampler import Sampler
from bench.diffusion.solvers import solver_of
from bench.interfaces import Erasure
from bench.perf.pairs import CALLS, alternate, ratio
from bench.types import GenerationRequest


def edit_cost(
    sampler: Sampler, erasures: Sequence[Erasure], requests: Sequence[GenerationRequest], pairs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of a call half way through the trajectory: without edits, with one or all of `erasures` in the bank, and with the dense hook.

    `requests` fill a call; with several erasures each row has another one. All gates are open.
    """
    start = _half_way(sampler, requests)
    plain = _case(sampler, [Row(request, Erasure()) for request in requests], [], start)
    cases = {"plain": plain}
    for name, own in (("1 erasure", erasures[:1]), (f"{len(erasures)} erasures in the bank", erasures)):
        rows = [Row(request, own[i % len(own)]) for i, request in enumerate(requests)]
        cases[name] = _case(sampler, rows, [Row(requests[0], erasure) for erasure in own], start)
    cases["dense hook"] = _dense(sampler, erasures[0], plain)
    seconds = alternate(cases, CALLS * pairs, sampler.model.device, say)
    return {name: ratio(own, seconds["plain"]) for name, own in seconds.items() if name != "plain"}


def _half_way(sampler: Sampler, requests: Sequence[GenerationRequest]) -> list[Tensor]:
    """The un-edited latents of each request before the middle step, where activations are what edits meet."""
    rows = [Row(request, Erasure()) for request in requests]
    call = _call(sampler, rows, rows, None)
    unet = sampler.model.sampling_unet(sampler.dtype)
    for _ in range(requests[0].steps // 2):
        call.run(unet)
    return list(call.latents)


def _call(sampler: Sampler, rows: Sequence[Row], known: Sequence[Row], start: Sequence[Tensor] | None) -> Call:
    """A call over rows, with the banks of all `known`, from the middle of the trajectory if there is a `start`."""
    model = sampler.model
    solver = solver_of(model.scheduler, [row.request for row in rows], model.device)
    banks = stack_edits([*rows, *known], model.device)
    tasks = [Task(row, conds, [i]) for i, (row, conds) in enumerate(zip(rows, encode(model, rows), strict=True))]
    for i, task in enumerate(tasks if start else []):
        assert start is not None
        task.latent, task.step, task.guidance = start[i], task.row.request.steps // 2, {}
        task.banks = [{name: torch.ones_like(value[0]) for name, value in bank.module.state(1).items()} for bank in banks]
    return Call(model, tasks, banks, solver, sampler.dtype, sampler.slots)


def _case(sampler: Sampler, rows: Sequence[Row], known: Sequence[Row], start: Sequence[Tensor]) -> Callable[[], object]:
    """One step, the same every time."""
    call = _call(sampler, rows, known, start)
    names = {name for bank in call.banks for name in bank.hookpoints}
    unet = sampler.model.sampling_unet(sampler.dtype)

    def run() -> object:
        call.restart(start, rows[0].request.steps // 2)
        with hooked(unet, names, call.act):
            return call.run(unet)

    return run


def _dense(sampler: Sampler, erasure: Erasure, plain: Callable[[], object]) -> Callable[[], object]:
    """The plain call with SAeUron's published hook (`utils/hooks.py`) at each hook point of an erasure, one concept for all."""
    edit: Any = erasure.activations[0]
    bank: Any = type(edit).stack([edit]).to(sampler.model.device)
    unet = sampler.model.sampling_unet(sampler.dtype)

    def hook(sae: Any, latents: Tensor, thresholds: Tensor) -> Callable[..., Any]:
        def act(module: torch.nn.Module, args: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = output[0].flatten(2).transpose(1, 2).float()
            z = torch.relu(sae.encoder(x - sae.b_dec))
            values, indices = z.topk(sae.config.k, dim=-1)
            z = torch.zeros_like(z).scatter_(-1, indices, values)
            rebuilt = z @ sae.W_dec + sae.b_dec
            own = z[..., latents]
            z[..., latents] = torch.where(own > thresholds, -own, own)
            edited = z @ sae.W_dec + sae.b_dec + rebuilt - x
            return (edited.to(output[0].dtype).transpose(1, 2).reshape(output[0].shape), *output[1:])

        return act

    def run() -> object:
        middle = len(edit.timesteps) // 2
        handles = []
        for h, name in enumerate(edit.hookpoints):
            latents, thresholds = edit.latents[h, middle].to(sampler.model.device), edit.thresholds[h, middle].to(sampler.model.device)
            handles.append(unet.get_submodule(name).register_forward_hook(hook(bank.sae(name), latents, thresholds)))
        try:
            return plain()
        finally:
            for handle in handles:
                handle.remove()

    return run

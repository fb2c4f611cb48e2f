"""How near a UNet call comes to what the machine can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.diffusion.numerics import call, call_inputs, synchronise
from bench.diffusion.sampler import Sampler
from bench.perf.pairs import CALLS, Case, alternate, ratio

PRODUCT = {"cuda": 8_192, "cpu": 2_048}
"""Rows, and columns, of the matrix product."""


def peak_share(sampler: Sampler, pairs: int, compiled: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Floating-point operations a second of a UNet call, eager and compiled, beside those of a large matrix product in the same dtype."""
    device, inputs = sampler.model.device, call_inputs(sampler)
    with FlopCounterMode(display=False) as counter:
        call(sampler, *inputs)
    flops = counter.get_total_flops()
    n = PRODUCT.get(device.type, 2_048)
    a = torch.randn(n, n, device=device, dtype=sampler.dtype)
    cases: dict[str, Case] = {"product": lambda: a @ a, "eager": partial(call, sampler, *inputs)}
    found: dict[str, Any] = {"gflop_a_slot": flops / sampler.slots / 1e9}
    if compiled:
        say("compiling")
        cases["compiled"] = partial(call, replace(sampler, compiled=True), *inputs)
        began = time.perf_counter()
        cases["compiled"]()
        synchronise(device)
        found["compiling_seconds"] = time.perf_counter() - began
    seconds = alternate(cases, CALLS * pairs, device, say)
    middle = {name: statistics.median(own) for name, own in seconds.items()}
    found["matrix_tflops"] = 2 * n**3 / middle["product"] / 1e12
    found["share_of_peak"] = {name: flops / own / 1e12 / found["matrix_tflops"] for name, own in middle.items() if name != "product"}
    found["slots_a_second"] = {name: sampler.slots / own for name, own in middle.items() if name != "product"}
    if compiled:
        found["eager_over_compiled"] = ratio(seconds["eager"], seconds["compiled"])
    return found

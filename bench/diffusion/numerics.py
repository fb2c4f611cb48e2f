"""The part of the set-up that decides a picture's bits: fixed when the plan is made, stored with every unit."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from bench.config import DTypeName
from bench.diffusion.model import DiffusionModel
from bench.errors import BenchError

_TRIALS = 3
_GAIN = 0.9  # bfloat16 has to be at least a tenth faster to be worth its rounding


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; BenchError for one that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{device.type} computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f'--device "{name}" is not to be had here: use auto or cpu.') from error
    return device


def pick_dtype(name: DTypeName, model: DiffusionModel, slots: int) -> torch.dtype:
    """For `auto`, time UNet calls of the run's own shape and take bfloat16 only where it is faster."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    fast = _call_seconds(model, torch.bfloat16, slots) < _GAIN * _call_seconds(model, torch.float32, slots)
    return torch.bfloat16 if fast else torch.float32


@torch.no_grad()
def _call_seconds(model: DiffusionModel, dtype: torch.dtype, slots: int) -> float:
    unet = model.sampling_unet(dtype)
    x = torch.zeros(slots, *model.latent_shape, dtype=dtype, device=model.device)
    states = model.text_states([""]).to(dtype).expand(slots, -1, -1)
    t = torch.zeros(slots, dtype=torch.int64, device=model.device)
    times = []
    for _ in range(1 + _TRIALS):
        began = time.perf_counter()
        unet(x, t, encoder_hidden_states=states)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def describe(device: torch.device, dtype: torch.dtype, slots: int) -> dict[str, Any]:
    """JSON of all that changes bits and is not part of a request."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    capability = "" if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": device.type, "hardware": hardware, "capability": capability, "dtype": str(dtype).removeprefix("torch."),
        "slots": slots, "threads": torch.get_num_threads(), "compiled": False, "torch": torch.__version__,
    }  # fmt: skip

"""The part of the set-up that decides a picture's bits: fixed when the plan is made, stored with every unit."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.config import CompileChoice, DTypeName
from bench.diffusion.attention import small_attention
from bench.diffusion.memory import PeakMemory, free_mb, keep_freed_memory
from bench.diffusion.model import DiffusionModel, channels_last
from bench.diffusion.rows import plain_slots
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError

TRIALS = 3
GAIN = 0.9
"""Another setting has to be at least a tenth faster to be worth its rounding."""
USUAL_SLOTS = 32
MOST_SLOTS = {"cpu": 64, "cuda": 128}
"""On two cores 6 % faster a slot than 32, more hardly so; for CUDA a guess that no measurement has confirmed."""
MEMORY_SHARE = 0.5
"""Of what is free; the rest is for decoding, judging and what else runs."""
COMPILING_SECONDS = {"cpu": 40.0, "cuda": 120.0}
"""What a first compilation takes at most: 9 to 24 were seen on 2 cores; for CUDA a guess."""
COMPILED_SAVES = 0.2
"""Of the time, expected before it is measured."""


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; BenchError for one that this machine lacks. From then on float32 means float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # whatever the library's default of the day
    keep_freed_memory()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{device.type} computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f'--device "{name}" is not to be had here: use auto or cpu.') from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and streams are those of the current device
    return device


def pick_dtype(name: DTypeName, model: DiffusionModel, slots: int) -> torch.dtype:
    """For `auto`, time UNet calls of the run's own shape and take bfloat16 only where it is faster."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    fast, slow = call_seconds(*(Sampler(model, dtype, slots) for dtype in (torch.bfloat16, torch.float32)))
    return torch.bfloat16 if fast < GAIN * slow else torch.float32


def pick_slots(model: DiffusionModel, dtype: torch.dtype, pictures: int) -> int:
    """The power of two that is worth it, that `pictures` can fill and that fits in `MEMORY_SHARE` of the free memory (by small calls)."""
    most, free = MOST_SLOTS.get(model.device.type, USUAL_SLOTS), free_mb(model.device)
    while most > 2 and most // 2 >= 2 * pictures:
        most //= 2
    used = {slots: _peak_mb(Sampler(model, dtype, slots)) for slots in (2, 8)}
    if free is None or used[8] is None or used[2] is None:
        return most
    each = max((used[8] - used[2]) / 6, 0.0)
    while most > 2 and each * most > MEMORY_SHARE * free:
        most //= 2
    return most


def pick_compiled(choice: CompileChoice, sampler: Sampler, calls: float) -> bool:
    """For `auto`, compile where that is expected to save twice what it takes over so many calls, and keep it if it is faster."""
    if choice != "auto":
        return choice == "yes"
    (eager,) = call_seconds(sampler)
    if calls * eager * COMPILED_SAVES < 2 * COMPILING_SECONDS.get(sampler.model.device.type, 60.0):
        return False
    compiled, eager = call_seconds(Sampler(sampler.model, sampler.dtype, sampler.slots, compiled=True), sampler)
    return compiled < GAIN * eager


def invariant_slots(sampler: Sampler) -> int:
    """The sampler's slots, or the next larger number at which no slot's bits depend on its place in a call.

    Some kernels treat the rows of a small matrix product differently by their place, such as float32 ones of 6 rows on a CPU.
    """
    for slots in range(sampler.slots, 2 * sampler.slots + 16):
        tried = Sampler(sampler.model, sampler.dtype, slots, sampler.compiled)
        inputs = call_inputs(tried)
        whole = call(tried, *inputs)
        order = [torch.roll(torch.arange(slots, device=whole.device), shift) for shift in (1, slots // 2 + 1)]
        if all(torch.equal(call(tried, *(value[places] for value in inputs)), whole[places]) for places in order):
            return slots
    raise BenchError("On this machine the bits of a picture depend on its place in a call, whatever the batch size: use another --dtype.")


@torch.no_grad()
def call(sampler: Sampler, x: Tensor, timestep: Tensor, states: Tensor, *added: Tensor) -> Tensor:
    """One UNet call as the sampler makes it, without edits; of `call_inputs`."""
    model = sampler.model
    texts = model.unet_texts(states, dict(zip(model.added, added, strict=True)), [model.picture_size] * len(x))
    with sampler.acting(set(), lambda name, x_in, x_out: x_out) as unet:
        out: Tensor = unet(x, timestep, **texts, return_dict=False)[0]
    return out


def call_seconds(*samplers: Sampler) -> list[float]:
    """Of each the fastest of `TRIALS` calls after one more, as other work only ever slows one down. They take turns, as machines drift."""
    inputs, times = [call_inputs(sampler) for sampler in samplers], []
    for _ in range(1 + TRIALS):
        for sampler, own in zip(samplers, inputs, strict=True):
            began = time.perf_counter()
            call(sampler, *own)
            synchronise(sampler.model.device)
            times.append(time.perf_counter() - began)
    return [min(times[i + len(samplers) :: len(samplers)]) for i in range(len(samplers))]


def picture_calls(sampler: Sampler, steps: int, guidance_scale: float) -> float:
    """How much of full calls an un-edited picture takes."""
    return steps * plain_slots(guidance_scale) / sampler.slots


def picture_seconds(sampler: Sampler, steps: int, guidance_scale: float) -> float:
    """What the UNet takes for an un-edited picture, in full calls."""
    return call_seconds(sampler)[0] * picture_calls(sampler, steps, guidance_scale)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def call_inputs(sampler: Sampler) -> tuple[Tensor, ...]:
    """Latents, timesteps, text states and (SDXL) pooled texts, all of them different, the same every time."""
    model, slots = sampler.model, sampler.slots
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(slots, *model.latent_shape, generator=generator)
    factors, text = torch.linspace(0.5, 1.5, slots), model.encode([""])[0]
    states = text.states.cpu() * factors[:, None, None]
    added = [(value.cpu() * factors[:, None]).to(model.device, sampler.dtype) for value in text.added.values()]
    timestep = torch.linspace(1, model.scheduler.config.num_train_timesteps - 1, slots).long()
    return x.to(model.device, sampler.dtype), timestep.to(model.device), states.to(model.device, sampler.dtype), *added


def _peak_mb(sampler: Sampler) -> float | None:
    inputs = call_inputs(sampler)
    with PeakMemory(sampler.model.device) as peak:
        call(sampler, *inputs)
    return peak.peak_mb


def describe(sampler: Sampler) -> dict[str, Any]:
    """JSON of all that changes bits and is not part of a request."""
    device = sampler.model.device
    on_cuda = device.type == "cuda"
    hardware = torch.cuda.get_device_name(device) if on_cuda else platform.machine()
    capability, threads = ("", None) if on_cuda else (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    return {
        "device": device.type, "hardware": hardware, "capability": capability, "dtype": str(sampler.dtype).removeprefix("torch."),
        "slots": sampler.slots, "threads": threads, "compiled": sampler.compiled, "torch": str(torch.__version__),
        "tf32": bool(on_cuda and torch.backends.cuda.matmul.allow_tf32), "channels_last": channels_last(device, sampler.dtype),
        "small_attention": small_attention(device, sampler.dtype, sampler.compiled),
    }  # fmt: skip


def kept_settings(kept: Mapping[str, Any] | None, model: DiffusionModel, asked: Mapping[str, Any]) -> Sampler | None:
    """The sampler of the run that is continued, where this machine can still be it and nothing else is `asked` for (None: anything)."""
    if not kept or any(value is not None and kept.get(name) != value for name, value in asked.items()):
        return None
    sampler = sampler_of(kept, model)
    return sampler if describe(sampler) == kept else None


def sampler_of(kept: Mapping[str, Any], model: DiffusionModel) -> Sampler:
    """With the settings of a run, whatever the machine."""
    return Sampler(model, getattr(torch, str(kept["dtype"])), int(kept["slots"]), bool(kept["compiled"]))

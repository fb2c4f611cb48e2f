"""All measurements of `python -m bench perf`, as JSON and as a table."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.diffusion.numerics import call, call_inputs, call_seconds, describe, invariant_slots, synchronise
from bench.diffusion.sampler import Sampler
from bench.files import write_atomic
from bench.perf.edits import edit_cost
from bench.perf.harness import harness_ratio
from bench.perf.sharing import sharing_rows, sharing_seconds
from bench.perf.world import World, sd15_world, suite_world
from bench.scoring import Scorer
from bench.suites.suite import Suite

PACKAGES = ("torch", "diffusers", "transformers")
DETECTIONS = ("calibrated", "saeuron-code")
TIMED = 16
"""Requests of the timed comparison of sharing."""


@dataclass(frozen=True)
class Scope:
    """What to measure."""

    size: str
    """"sd15" or the suite's own."""
    images: int
    """Of the harness."""
    steps: int
    pairs: int
    compiled: bool
    table: int
    """Requests of the sharing table, of those of the grid."""


def measure(
    suite: Suite, scope: Scope, device: torch.device, dtype: torch.dtype, slots: int, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure and write `<size>-<device>.json` and `.md` into `folder`; returns what the JSON holds."""
    with tempfile.TemporaryDirectory() as scratch:
        say("loading")
        is_suite = scope.size != "sd15"
        world = suite_world(suite, scope.steps, device, dtype) if is_suite else sd15_world(suite, scope.steps, device, Path(scratch))
        sampler = Sampler(world.model, dtype, slots)
        sampler.slots = invariant_slots(sampler)
        found: dict[str, Any] = {
            "size": scope.size, "command": "python -m bench " + " ".join(sys.argv[1:]), "numerics": describe(sampler),
            "machine": {"cpu": _cpu(), "cores": torch.get_num_threads(), "python": platform.python_version()},
            "packages": {name: version(name) for name in PACKAGES}, "steps": scope.steps, "pairs": scope.pairs,
        }  # fmt: skip
        name = f"{scope.size}-{device.type}"
        found["edits"] = edit_cost(sampler, world.edits, _spread(world, slots // 2), scope.pairs, say)
        found["unet"] = _peak_share(sampler)
        found["harness"] = harness_ratio(
            suite, sampler, Scorer.load(suite, device), _spread(world, scope.images), scope.pairs, scope.compiled, say
        )
        if is_suite:
            found["sharing"] = _sharing(world, sampler, scope, say)
            found["start_up_seconds"] = _start_up(say)
    write_atomic(folder / f"{name}.json", (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(folder / f"{name}.md", as_table(found).encode())
    return found


def _spread(world: World, count: int) -> tuple[Any, ...]:
    """Requests spread over the grid; again from the first, with other seeds, where there are not enough."""
    requests = world.requests
    turns = [replace(request, seed=1 + turn) for turn in range(-(-count // len(requests))) for request in requests]
    return tuple(turns[k * len(turns) // count] for k in range(count))


def _sharing(world: World, sampler: Sampler, scope: Scope, say: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for detection in DETECTIONS:
        erasures = world.erasures(sampler.dtype, detection)
        found[detection] = sharing_rows(sampler, erasures, _spread(world, scope.table), say)
        if detection == DETECTIONS[0]:
            few = dict(list(erasures.items())[:: max(1, len(erasures) // 6)])
            found["timed"] = sharing_seconds(sampler, few, _spread(world, min(scope.images, TIMED)), scope.pairs, say)
    return found


def _peak_share(sampler: Sampler) -> dict[str, float]:
    """Floating-point operations of a call, what it reaches, and what a large matrix product reaches beside it."""
    with FlopCounterMode(display=False) as counter:
        call(sampler, *call_inputs(sampler))
    reached = counter.get_total_flops() / call_seconds(sampler)
    n = 8_192 if sampler.model.device.type == "cuda" else 2_048
    a = torch.randn(n, n, device=sampler.model.device, dtype=sampler.dtype)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        synchronise(sampler.model.device)
        times.append(time.perf_counter() - began)
    peak = 2 * n**3 / min(times)
    return {
        "gflop_a_slot": counter.get_total_flops() / sampler.slots / 1e9, "slots_a_second": sampler.slots / call_seconds(sampler),
        "tflops": reached / 1e12, "matrix_tflops": peak / 1e12, "share_of_peak": reached / peak,
    }  # fmt: skip


def _start_up(say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of whole processes, the fastest of three; `plan` is what `run` does before it samples."""
    found = {}
    for name, arguments in {"--help": ["--help"], "list": ["list"], "run until it samples": ["plan", "--preset", "smoke"]}.items():
        say(f"start-up of {name}")
        times = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        found[name] = min(times)
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def as_table(found: dict[str, Any]) -> str:
    """Markdown, a figure a line."""
    harness, n = found["harness"], found["numerics"]
    rows = [("harness ÷ plain pipeline, pictures a second, both eager", _range(harness["eager"]))]
    if "compiled" in harness:
        rows.append(("the same, both compiled", _range(harness["compiled"])))
        rows.append(("harness compiled ÷ plain eager", _range(harness["compiled_over_plain_eager"])))
    for name, value in found["edits"].items():
        rows.append((f"UNet call with {name} ÷ plain call", _range(value)))
    for detection in DETECTIONS if "sharing" in found else ():
        own = found["sharing"][detection]
        rows.append((f"two methods × all concepts: UNet rows shared ÷ alone, detection {detection}", f"{own['ratio']:.3f}"))
        rows.append((
            f"rows that never fork; of pictures without the target, those that fork; mean step of a fork ({detection})",
            f"{own['never_fork']:.1%}; {own['unrelated_fork']:.1%}; {own['mean_fork_step'] or 0:.1f} of {found['steps']}",
        ))  # fmt: skip
    if "sharing" in found:
        timed = found["sharing"]["timed"]
        rows.append((f"seconds shared ÷ alone, {timed['erasures']} erasures (rows {timed['rows']:.3f})", _range(timed["seconds"])))
    peaks = ", ".join(f"{images} images {mb:,.0f} MB" for images, mb in harness["peak_memory_mb"].items() if mb is not None)
    rows.append(("peak memory above the loaded, warm process", peaks or "not known"))
    rows.append(("time to a first sampled picture, warm", f"{harness['first_image_seconds']:.1f} s"))
    unet = found["unet"]
    rows.append(("UNet share of the peak of a matrix product", f"{unet['share_of_peak']:.0%} of {unet['matrix_tflops']:.2f} TFLOP/s"))
    rows += [(f"start-up of {name}", f"{seconds:.2f} s") for name, seconds in found.get("start_up_seconds", {}).items()]
    machine = f"{found['machine']['cpu']}, {found['machine']['cores']} threads" if n["device"] == "cpu" else n["hardware"]
    title = f"{found['size']} on {machine}, {n['dtype']}, {n['slots']} slots a call, {found['steps']} steps"
    lines = [f"`{found['command']}`: {title}, torch {n['torch']}.", "", "| figure | median [range] |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def _range(value: dict[str, Any]) -> str:
    return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

"""All measurements of `python -m bench perf`, as JSON and as a table."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.config import DTypeName
from bench.diffusion.model import load_model
from bench.diffusion.numerics import USUAL_SLOTS, describe, invariant_slots, pick_dtype, pick_slots
from bench.diffusion.sampler import Sampler
from bench.files import write_atomic
from bench.perf.edits import edit_cost
from bench.perf.harness import harness_ratio
from bench.perf.peak import peak_share
from bench.perf.process import run_memory, start_up
from bench.perf.sharing import sharing_rows, sharing_seconds
from bench.perf.world import World, sd15_model, sd15_world, suite_world
from bench.scoring import Scorer
from bench.suites.suite import Suite

PACKAGES = ("torch", "diffusers", "transformers")
DETECTIONS = ("calibrated", "saeuron-code")
TIMED = 8
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
    suite: Suite, scope: Scope, device: torch.device, dtype: DTypeName, slots: int | None, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure and write `<size>-<device>.json` and `.md` into `folder`; returns what the JSON holds. Without `slots`, those of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        say("loading")
        is_suite = scope.size != "sd15"
        model = load_model(suite.model_folder(), device) if is_suite else sd15_model(suite, device)
        precision = pick_dtype(dtype, model, slots or USUAL_SLOTS)
        sampler = Sampler(model, precision, slots or pick_slots(model, precision))
        sampler.slots = slots = invariant_slots(sampler)
        world = suite_world(suite, model, scope.steps, precision) if is_suite else sd15_world(suite, model, scope.steps, Path(scratch))
        found: dict[str, Any] = {
            "size": scope.size, "command": "python -m bench " + " ".join(sys.argv[1:]), "numerics": describe(sampler),
            "machine": {"cpu": _cpu(), "cores": torch.get_num_threads(), "python": platform.python_version()},
            "packages": {name: version(name) for name in PACKAGES}, "steps": scope.steps, "pairs": scope.pairs,
        }  # fmt: skip
        name = f"{scope.size}-{device.type}"
        found["edits"] = edit_cost(sampler, world.edits, _spread(world, slots // 2), scope.pairs, say)
        found["unet"] = peak_share(sampler, scope.pairs, scope.compiled, say)
        found["harness"] = harness_ratio(
            suite, sampler, Scorer.load(suite, device), _spread(world, scope.images), scope.pairs, scope.compiled, say
        )
        if is_suite:
            found["sharing"] = _sharing(world, sampler, scope, say)
            found["start_up_seconds"] = start_up(say)
            found["run_memory_mb"] = run_memory(suite.name, str(suite.concepts[0]), str(device), say)
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
        few = dict(list(erasures.items())[:: max(1, len(erasures) // 6)])
        found[detection] = {
            **sharing_rows(world.suite, sampler, erasures, _spread(world, scope.table), say),
            "timed": sharing_seconds(sampler, few, _spread(world, min(scope.images, TIMED)), scope.pairs, say),
        }
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
        rows.append((f"macro-UA ({detection})", "; ".join(f"{name} {ua:.3f}" for name, ua in own["macro_ua"].items())))
        timed = own["timed"]
        name = f"seconds shared ÷ alone, {timed['erasures']} erasures, {timed['requests']} prompts ({detection}: rows {timed['rows']:.3f})"
        rows.append((name, _range(timed["seconds"])))
    peaks = ", ".join(f"{images} images {mb:,.0f} MB" for images, mb in harness["peak_memory_mb"].items() if mb is not None)
    rows.append(("peak memory above the loaded, warm process", peaks or "not known"))
    rows.append(("time to a first sampled picture, warm", f"{harness['first_image_seconds']:.1f} s"))
    unet = found["unet"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in unet["share_of_peak"].items())
    rows.append(("UNet share of the peak of a matrix product", f"{shares} of {unet['matrix_tflops']:.2f} TFLOP/s"))
    if "eager_over_compiled" in unet:
        rows.append(("UNet call eager ÷ compiled", _range(unet["eager_over_compiled"])))
    whole = ", ".join(f"{times} {mb:,.0f} MB" for times, mb in found.get("run_memory_mb", {}).items())
    if whole:
        rows.append(("most memory of a whole `run` process, by pictures", whole))
    rows += [(f"start-up of {name}", f"{seconds:.2f} s") for name, seconds in found.get("start_up_seconds", {}).items()]
    machine = f"{found['machine']['cpu']}, {found['machine']['cores']} threads" if n["device"] == "cpu" else n["hardware"]
    title = f"{found['size']} on {machine}, {n['dtype']}, {n['slots']} slots a call, {found['steps']} steps"
    lines = [f"`{found['command']}`: {title}, torch {n['torch']}.", "", "| figure | median [range] |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def _range(value: dict[str, Any]) -> str:
    return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

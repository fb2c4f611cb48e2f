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
from bench.diffusion.loading import load_model
from bench.diffusion.numerics import USUAL_SLOTS, describe, invariant_slots, pick_dtype, pick_slots
from bench.diffusion.sampler import Sampler
from bench.errors import BenchError
from bench.files import write_atomic
from bench.perf.attacks import GOALS, attack_ratio
from bench.perf.edits import edit_cost
from bench.perf.engines import engine_ratio
from bench.perf.harness import harness_ratio
from bench.perf.peak import peak_share
from bench.perf.process import run_memory, start_up
from bench.perf.sharing import sharing_rows, sharing_seconds
from bench.perf.store import store_seconds
from bench.perf.world import World, sd15_model, sd15_world, suite_world
from bench.scoring import Scorer
from bench.suites.suite import Suite

PACKAGES = ("torch", "diffusers", "transformers")
DETECTIONS = ("calibrated", "saeuron-code")
TIMED = 8
"""Requests of the timed comparison of sharing."""


PARTS: dict[str, tuple[str, ...]] = {
    "suite": ("unet", "harness", "sharing", "process", "store", "engines", "attacks"),
    "sd15": ("unet", "harness", "attacks"),
}  # fmt: skip
"""What there is to measure, by size."""


@dataclass(frozen=True)
class Scope:
    """What to measure."""

    size: str
    """"sd15" or the suite's own."""
    parts: tuple[str, ...]
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
    """Measure, writing `<size>-<device>.json` and `.md` into `folder` after every part; returns what the JSON holds.

    Parts that an earlier command measured with the same numerics are kept. Without `slots`, those of a run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        say("loading")
        is_suite = scope.size != "sd15"
        model = load_model(suite.model_folder(), device) if is_suite else sd15_model(suite, device)
        precision = pick_dtype(dtype, model, slots or USUAL_SLOTS)
        sampler = Sampler(model, precision, slots or pick_slots(model, precision, scope.images))
        sampler.slots = invariant_slots(sampler)
        world = suite_world(suite, model, scope.steps, precision) if is_suite else sd15_world(suite, model, scope.steps, Path(scratch))
        about = {
            "size": scope.size, "numerics": describe(sampler), "packages": {name: version(name) for name in PACKAGES}, "steps": scope.steps,
            "machine": {"cpu": _cpu(), "cores": torch.get_num_threads(), "python": platform.python_version()},
        }  # fmt: skip
        path = folder / f"{scope.size}-{device.type}.json"
        found: dict[str, Any] = {**about, "commands": {}}
        if set(scope.parts) != set(PARTS["suite" if is_suite else "sd15"]):
            found |= _kept(path, about)
        measured: dict[str, Callable[[], dict[str, Any]]] = {
            "unet": lambda: _unet(world, sampler, scope, say), "harness": lambda: _harness(suite, world, sampler, scope, say),
            "sharing": lambda: {"sharing": _sharing(world, sampler, scope, say)}, "process": lambda: _process(suite, device, say),
            "store": lambda: {"store": store_seconds(suite, say)},
            "attacks": lambda: {"attacks": _attacks(world, sampler, scope, say)},
            "engines": lambda: {"engines": engine_ratio(suite, device, dtype, scope.steps // 4, scope.pairs, say)},
        }  # fmt: skip
        for part in scope.parts:
            found |= measured[part]()
            found["commands"][part] = "python -m bench " + " ".join(sys.argv[1:])
            write_atomic(path, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
            write_atomic(path.with_suffix(".md"), as_table(found).encode())
    return found


def _kept(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What other commands measured of the same thing. BenchError if it was measured of something else, not to lose it."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    other = [name for name, value in about.items() if kept.get(name) != value]
    if other:
        raise BenchError(f"{path} was measured with other {', '.join(other)}: measure all parts, or choose another --out.")
    return dict(kept)


def _unet(world: World, sampler: Sampler, scope: Scope, say: Callable[[str], None]) -> dict[str, Any]:
    edits = edit_cost(sampler, world.edits(), _spread(world, sampler.slots // 2), scope.pairs, say)
    return {"edits": edits, "unet": peak_share(sampler, scope.pairs, scope.compiled, say)}


def _harness(suite: Suite, world: World, sampler: Sampler, scope: Scope, say: Callable[[str], None]) -> dict[str, Any]:
    scorer = Scorer.load(suite, sampler.model.device)
    return {"harness": harness_ratio(suite, sampler, scorer, _spread(world, scope.images), scope.pairs, scope.compiled, say)}


def _attacks(world: World, sampler: Sampler, scope: Scope, say: Callable[[str], None]) -> dict[str, Any]:
    goals = GOALS if scope.size != "sd15" else min(GOALS, scope.images)
    return attack_ratio(world, world.edits(), sampler.dtype, scope.pairs, goals, say)


def _process(suite: Suite, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    own = suite.name, str(suite.concepts[0]), str(device)
    return {"start_up_seconds": start_up(*own, say), "run_memory_mb": run_memory(*own, say)}


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
    """Markdown, a figure a line, of the parts that were measured."""
    rows = [row for part in PARTS["suite"] if part in found["commands"] for row in ROWS[part](found)]
    n = found["numerics"]
    machine = f"{found['machine']['cpu']}, {found['machine']['cores']} threads" if n["device"] == "cpu" else n["hardware"]
    title = f"{found['size']} on {machine}, {n['dtype']}, {n['slots']} slots a call, {found['steps']} steps"
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(found["commands"].values()))
    lines = [f"{commands}: {title}, torch {n['torch']}.", "", "| figure | median [range] |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


Lines = list[tuple[str, str]]


def _unet_rows(found: dict[str, Any]) -> Lines:
    unet = found["unet"]
    rows = [(f"UNet call with {name} ÷ plain call", _range(value)) for name, value in found["edits"].items()]
    if "eager_over_compiled" in unet:
        rows.append(("UNet call eager ÷ compiled", _range(unet["eager_over_compiled"])))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in unet["share_of_peak"].items())
    return [*rows, ("UNet share of the peak of a matrix product", f"{shares} of {unet['matrix_tflops']:.2f} TFLOP/s")]


def _harness_rows(found: dict[str, Any]) -> Lines:
    harness = found["harness"]
    rows = [("harness ÷ plain pipeline, pictures a second, both eager", _range(harness["eager"]))]
    if "compiled" in harness:
        rows.append(("the same, both compiled", _range(harness["compiled"])))
        rows.append(("harness compiled ÷ plain eager", _range(harness["compiled_over_plain_eager"])))
    peaks = ", ".join(f"{images} images {mb:,.0f} MB" for images, mb in harness["peak_memory_mb"].items() if mb is not None)
    rows.append(("peak memory above the loaded, warm process", peaks or "not known"))
    return [*rows, ("time to a first sampled picture, warm", f"{harness['first_image_seconds']:.1f} s")]


def _sharing_rows(found: dict[str, Any]) -> Lines:
    rows = []
    for detection, own in found["sharing"].items():
        timed = own["timed"]
        about = f"{timed['erasures']} erasures, {timed['requests']} prompts ({detection}: rows {timed['rows']:.3f})"
        rows += [
            (f"two methods × all concepts: UNet rows shared ÷ alone, detection {detection}", f"{own['ratio']:.3f}"),
            (
                f"rows that never fork; of pictures without the target, those that fork; mean step of a fork ({detection})",
                f"{own['never_fork']:.1%}; {own['unrelated_fork']:.1%}; {own['mean_fork_step'] or 0:.1f} of {found['steps']}",
            ),
            (f"macro-UA ({detection})", "; ".join(f"{name} {ua:.3f}" for name, ua in own["macro_ua"].items())),
            (f"seconds shared ÷ alone, {about}", _range(timed["seconds"])),
        ]
    return rows


def _process_rows(found: dict[str, Any]) -> Lines:
    whole = ", ".join(f"{times} {mb:,.0f} MB" for times, mb in found["run_memory_mb"].items())
    rows = [("most memory of a whole `run` process, by pictures", whole or "not known")]
    return [*rows, *((f"start-up of {name}", f"{seconds:.2f} s") for name, seconds in found["start_up_seconds"].items())]


def _store_rows(found: dict[str, Any]) -> Lines:
    own = found["store"]
    size = f"{own['pictures']:,} pictures, {own['methods']} methods, {own['units']:,} units"
    verified = f"`verify` of {own['verify_units']:,} units, {own['verify_mb']:,.0f} MB in the system's cache"
    return [
        (f"a plan of {size}: made; resumed", f"{own['plan_seconds']:.1f} s; {own['resume_seconds']:.1f} s"),
        (verified, f"{own['verify_seconds']:.1f} s"),
    ]


def _engine_rows(found: dict[str, Any]) -> Lines:
    own = found["engines"]
    return [(f"seconds, Ray ÷ local, {own['workers']} workers, {own['pictures']} pictures of {own['steps']} steps", _range(own["seconds"]))]


def _attack_rows(found: dict[str, Any]) -> Lines:
    own = found["attacks"]
    same = f"the same prompts: in float32 {own['equal']:.0%}, as timed {own['equal_as_timed']:.0%}"
    about = f"{own['goals']} goals, each another erasure of SAeUron's; {same}"
    memory = f"; {own['peak_memory_mb']:,.0f} MB above the loaded" if own["peak_memory_mb"] is not None else ""
    return [
        (f"gradient steps a second of UnlearnDiffAtk, together ÷ one at a time ({about})", _range(own["steps_a_second"])),
        ("gradient steps a second, together", f"{own['best_steps_a_second']:.0f}{memory}"),
    ]


ROWS: dict[str, Callable[[dict[str, Any]], Lines]] = {
    "unet": _unet_rows, "harness": _harness_rows, "sharing": _sharing_rows, "process": _process_rows, "store": _store_rows,
    "engines": _engine_rows, "attacks": _attack_rows,
}  # fmt: skip


def _range(value: dict[str, Any]) -> str:
    return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

"""How long a plan of UnlearnCanvas' full size takes to make and to resume, and 10,000 units to verify."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from bench.diffusion.memory import process_mb
from bench.engine.worker import Worker
from bench.identity import Identity, MethodSpec
from bench.plan import BASE, Plan, make_plan
from bench.registry import method
from bench.store import Store
from bench.suites.suite import Preset, Suite
from bench.types import Target
from bench.verify import damaged_units

STYLES, OBJECTS, SEEDS = 51, 20, 5
"""Of the published protocol: 50 styles and photographs; every style but those and every object is a target."""
ROW_WISE, WEIGHTED = 7, 3
"""Methods beside the unedited model."""
UNITS, ROWS, FEATURES = 10_000, 64, 512
PRESET = Preset("the published protocol", (), grid=1, seeds=SEEDS, steps=100)


def store_seconds(suite: Suite, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each, and what they are of."""
    say("a plan of full size")
    began = time.perf_counter()
    plan = _plan(suite)
    planned = time.perf_counter() - began
    methods = {unit.fit.spec.label for unit in plan.units} - {BASE}
    found: dict[str, Any] = {
        "plan_seconds": planned, "pictures": plan.pictures, "methods": len(methods), "units": len(plan.units),
        "bundles": len(plan.bundles), "resident_mb": process_mb("VmRSS"),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found["resume_seconds"] = _resumed(plan, Store.create(Path(folder)), say)
    with tempfile.TemporaryDirectory() as folder:
        found |= _verified(Store.create(Path(folder)), say)
    return found


def _plan(suite: Suite) -> Plan:
    large = cast(Suite, type("Large", (type(suite),), {
        "styles": tuple(f"style {i}" for i in range(STYLES)), "objects": tuple(f"object {i}" for i in range(OBJECTS)),
        "texts": lambda self, concept: suite.texts(suite.concepts[0]),
    })())  # fmt: skip
    names = [BASE, *("negative-prompt",) * ROW_WISE, *("esd",) * WEIGHTED]
    cards = {name: replace(method(name).card, supports=("style", "object")) for name in set(names)}
    labels = [BASE, *(f"{name} {k}" for k, name in enumerate(names[1:]))]
    specs = [MethodSpec(name, label, 1, {"label": label}, cards[name], name != "esd") for name, label in zip(names, labels, strict=True)]
    targets = [Target((concept,)) for concept in large.concepts if concept.name != "style 0"]
    return make_plan(large, specs, targets, PRESET, Identity("model", {}, "protocol", "jpeg", {"slots": 64}, 0))


def _resumed(plan: Plan, store: Store, say: Callable[[str], None]) -> float:
    """Of finding that one unit in a thousand is left."""
    say(f"resuming it, {len(plan.units):,} units")
    digest = hashlib.sha256().hexdigest()
    for place, unit in enumerate(plan.units):
        if place % 1_000:
            path = store.folder / "units" / unit.id[:2] / f"{unit.id}.{digest[:16]}.sample.{digest}.parquet"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    nothing = cast(Any, None)
    worker = Worker(nothing, store, nothing, nothing, nothing, nothing, "sample", 0, nothing, nothing, nothing)
    began = time.perf_counter()
    left = worker.left(plan.units)
    seconds = time.perf_counter() - began
    assert len(left) == -(-len(plan.units) // 1_000)
    return seconds


def _verified(store: Store, say: Callable[[str], None]) -> dict[str, float]:
    """Of `UNITS` units of a size as they have, all in the system's cache."""
    say(f"verifying {UNITS:,} units")
    draw = np.random.default_rng(0)
    size = 0
    for number in range(UNITS):
        features = list(draw.standard_normal((ROWS, FEATURES), dtype=np.float32))
        unit = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        if not number:
            store.write_unit(unit, pd.DataFrame({"features": features}), "0" * 16, "sample")
            (first,) = store.unit_files(unit)
            data = first.path.read_bytes()
        own = data[:-8] + number.to_bytes(8, "little")
        path = store.folder / "units" / unit[:2] / f"{unit}.{'0' * 16}.sample.{hashlib.sha256(own).hexdigest()}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(own)
        size += len(own)
    first.path.unlink()
    began = time.perf_counter()
    files = store.all_unit_files()
    assert damaged_units(store, files) == []
    return {"verify_seconds": time.perf_counter() - began, "verify_units": len(files), "verify_mb": size / 1e6}

"""A table of twenty methods on UnlearnCanvas at its full size, made from records within 2 GB."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_up import none, record

from bench.store import Store
from bench.suites.unlearncanvas.vocabulary import OBJECTS, STYLES
from bench.types import Record

METHODS, SEEDS = 20, (188, 288, 588, 688, 888)
PROTOCOL = "unlearncanvas@official-v1/full/100-steps"


def records(folder: Path) -> None:
    """Twenty-one of them, 357,000 outcomes each, with a few mistakes."""
    chance = np.random.default_rng(0)
    targets = [*(f"style:{name}" for name in STYLES), *(f"object:{name}" for name in OBJECTS)]
    cells = np.array(list(itertools.product((*STYLES, "Seed_Images"), OBJECTS)), dtype=object)
    style, obj = (np.tile(np.repeat(cells[:, k], len(SEEDS)), len(targets)) for k in range(2))
    seeds = np.tile(np.array(SEEDS), len(cells) * len(targets))
    target = np.repeat(np.array(targets, dtype=object), len(cells) * len(SEEDS))
    one = len(cells) * len(SEEDS)
    made: list[Record] = [none(protocol=PROTOCOL, outcomes={
        "target": [""] * one, "style": style[:one].tolist(), "object": obj[:one].tolist(), "seed": seeds[:one].tolist(),
        "style_pred": style[:one].tolist(), "object_pred": obj[:one].tolist(),
    })]  # fmt: skip
    for k in range(METHODS):
        seen = {}
        for kind, asked, names in (("style", style, STYLES), ("object", obj, OBJECTS)):
            erased = np.array([f"{kind}:{name}" for name in asked], dtype=object) == target
            wrong = np.where(erased, chance.random(len(asked)) < 0.6 + k / 60, chance.random(len(asked)) < 0.02)
            seen[f"{kind}_pred"] = np.where(wrong, chance.choice(np.array(names, dtype=object), len(asked)), asked).tolist()
        acts = np.where(chance.random(len(asked)) < 0.02, chance.integers(0, 100, len(asked)), -1)
        seen |= {"far": (chance.random(len(asked)) < 0.05).tolist(), "first_edit": acts.tolist()}
        outcomes = {"target": target.tolist(), "style": style.tolist(), "object": obj.tolist(), "seed": seeds.tolist(), **seen}
        made.append(record(f"method-{k:02d}", protocol=PROTOCOL, outcomes=outcomes, distances={}))
    Store(folder).write_records(made)


@pytest.mark.slow
def test_a_full_table_is_made_in_2_gb(tmp_path: Path) -> None:
    records(tmp_path)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "bench", "report", str(tmp_path)], capture_output=True, text=True, check=False)
    seconds, memory = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert done.returncode == 0, done.stderr
    print(json.dumps({"seconds": seconds, "GB": memory, "page_mb": (tmp_path / "report.html").stat().st_size / 1e6}))
    assert memory < 2

"""The same bytes from Ray actors, on one machine and on two nodes, whoever dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import finish, results, start, until_units

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(folder))
    return folder


def actors() -> list[int]:
    """Processes that Ray has given a task of ours, or a name of ours."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if b"ray::Actor" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass
    return found


def test_one_machine_and_a_worker_that_dies(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--engine", "ray", "--workers", "2")
    until_units(process, folder)
    os.kill(max(actors()), signal.SIGKILL)
    assert "another takes its place" in finish(process)
    assert results(folder, whole) == results(whole, whole)


@pytest.mark.parametrize("lost", [False, True])
def test_two_nodes(whole: Path, tmp_path: Path, lost: bool) -> None:
    """Two raylets; `lost`: one of them goes in the middle of the run."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    try:
        folder = tmp_path / "run"
        process = start(folder, "--engine", "ray", "--ray-address", cluster.address, "--workers", "2")
        until_units(process, folder)
        if lost:
            cluster.remove_node(second, allow_graceful=False)
            cluster.add_node(num_cpus=1)
        finish(process)
    finally:
        cluster.shutdown()
    assert results(folder, whole) == results(whole, whole)

"""UnlearnCanvas from miniature published files through the command line, and what is said of damaged ones."""

from __future__ import annotations

from pathlib import Path

import miniature
import pytest
from commands import bench

RUN = ("run", "--suite", "unlearncanvas", "--preset", "smoke", "--dtype", "float32", "--batch-size", "8", "--compile", "no")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.everything(tmp_path_factory.mktemp("assets"))


def test_the_suite_s_command_works_from_the_published_files(assets: Path, tmp_path: Path) -> None:
    found = bench(*RUN, "--methods", "saeuron,saeuron-detect", "--assets", str(assets), "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr

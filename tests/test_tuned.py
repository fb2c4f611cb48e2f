"""The file of tuned parameters, and the command that writes it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.suites.minicanvas import SUITE
from bench.suites.suite import Tuned
from bench.tuned import configs, read, toml
from bench.types import canonical_json


@pytest.mark.parametrize(
    "text", ["[budget", "[budget]\n", '[budget]\n[scores]\n[concepts."style:neon"]\n', "budget = 1\nconcepts = 2\nscores = 3\n"]
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "fake.toml").write_text(text)
    with pytest.raises(BenchError, match=r"fake\.toml is damaged"):
        read(tmp_path / "fake.toml")


SCALARS = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans())
TABLES = st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=4)


@settings(max_examples=60)
@given(budget=TABLES, concepts=st.dictionaries(st.text(), TABLES, min_size=1, max_size=3))
def test_toml_is_read_back(budget: dict[str, Any], concepts: dict[str, Any]) -> None:
    body = {"budget": budget, "concepts": concepts}
    back = tomllib.loads(toml(body))
    assert back == body
    assert all(type(back["budget"][key]) is type(value) for key, value in budget.items())


def test_help_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['bench', 'tune', '--help']\nfrom bench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False).returncode == 0


SHIPPED = [(path.stem, path.parent.name == "shared") for path in sorted(SUITE.tuned_folder.rglob("*.toml"))]


@pytest.mark.parametrize(("name", "shared"), SHIPPED)
def test_what_is_shipped_can_be_used(name: str, shared: bool) -> None:
    _, found = configs(SUITE, name, {}, SUITE.tuned(name, shared))
    assert found


def test_a_later_parameter_at_its_default_leaves_a_tuning_as_it_was() -> None:
    tuned = SUITE.tuned("uce", shared=True)
    assert tuned is not None
    then = json.loads(tuned.budget["untuned"])
    then.pop("tokens")  # as if there had been none
    earlier = Tuned({**tuned.budget, "untuned": canonical_json(then)}, tuned.concepts)
    assert configs(SUITE, "uce", {}, earlier)
    other = Tuned({**tuned.budget, "untuned": canonical_json({**then, "apply": "weights"})}, tuned.concepts)
    with pytest.raises(BenchError, match="are of other defaults"):
        configs(SUITE, "uce", {}, other)
    gone = Tuned({**tuned.budget, "untuned": canonical_json({**then, "gone": 1})}, tuned.concepts)
    with pytest.raises(BenchError, match="are of other defaults"):
        configs(SUITE, "uce", {}, gone)

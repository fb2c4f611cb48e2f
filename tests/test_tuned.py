"""The file of tuned parameters, and the command that writes it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.tuned import read, toml


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

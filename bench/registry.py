"""Find methods and suites by name, without importing them until they are used.

A file `methods/<name>.py` is a method, a module in `bench/suites/` a suite; installed packages add methods through the
entry-point group `bench.methods`. Summaries are read from the source text, so that listing needs no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from bench.errors import BenchError, unknown

CLASSIFIERS = {
    "two-head": "classifiers.two_head:load", "unlearncanvas": "classifiers.unlearncanvas:load",
    "clip-zero-shot": "classifiers.clip:load_zero_shot", "inception-torchvision": "classifiers.inception_torchvision:load",
    "inception-clean-fid": "classifiers.inception_clean_fid:load", "clip-score": "classifiers.clip:load_score",
    "qwen2-vl": "classifiers.qwen2_vl:load",
}  # fmt: skip
"""Name → what loads it, given a folder or file and a device."""
SUITES = {"minicanvas": "bench.suites.minicanvas", "unlearncanvas": "bench.suites.unlearncanvas"}
ATTACKS: dict[str, str] = {}


def load_object(address: str) -> Any:
    """The object at "module:name"; BenchError if there is none."""
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BenchError(f"{address} cannot be loaded ({error}): reinstall the package that provides it.") from error


def methods() -> dict[str, str]:
    """Name → module of every method; "_" in a file name is "-" in the method's name."""
    package = importlib.util.find_spec("methods")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.py")) if not file.name.startswith("_")]
    found = {file.stem.replace("_", "-"): f"methods.{file.stem}" for file in files}
    for entry in entry_points(group="bench.methods"):
        if entry.name in found:
            raise BenchError(f'Two methods are called "{entry.name}", {found[entry.name]} and {entry.value}: uninstall one of them.')
        found[entry.name] = entry.value
    return found


def summary(module: str) -> str:
    """First line of a module's docstring, read without importing it; empty if the source cannot be found."""
    try:
        spec = importlib.util.find_spec(module.partition(":")[0])
    except ImportError:
        return ""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def method(name: str) -> Any:
    """The `UnlearningMethod` class of this name."""
    found = methods()
    if name not in found:
        raise unknown("method", name, found)
    address = found[name]
    return load_object(address if ":" in address else f"{address}:METHOD")


def suite(text: str) -> Any:
    """The `Suite` of "name", "name@profile" or "path/to/suite.toml"."""
    if text.endswith(".toml"):
        return load_object("bench.suites.from_file:load_suite")(Path(text).absolute())
    name, at, profile = text.partition("@")
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    profiles = load_object(f"{SUITES[name]}:PROFILES")
    if at and profile not in profiles:
        raise unknown(f"profile of {name}", profile, profiles)
    return profiles[profile] if at else next(one for one in profiles.values() if one.default)

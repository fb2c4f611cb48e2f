"""Whether a method's code is what it was when a run began."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.identity import MethodSpec
from bench.registry import address


def source_digest(address: str) -> str:
    """SHA-256 over the method's module and those that it imports from its own package, comments and layout aside."""
    found: dict[str, str] = {}
    _collect(address.partition(":")[0], found)
    return hashlib.sha256("\n".join(found[name] for name in sorted(found)).encode()).hexdigest()


def _collect(module: str, found: dict[str, str]) -> None:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # `from package import name`: the name is no module
        return
    if module in found or spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found[module] = ast.unparse(tree)
    package = module.partition(".")[0]
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
            names = [origin, *(f"{origin}.{name}" for name in names)]
        for name in names:
            if name.partition(".")[0] == package:
                _collect(name, found)


def sources_of(specs: Iterable[MethodSpec]) -> dict[str, dict[str, Any]]:
    """Version and digest of the code of each method."""
    return {spec.name: {"version": spec.version, "source": source_digest(address(spec.address))} for spec in specs}


def changed(known: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Methods whose code is another one now, though their version is the same."""
    both = sorted(known.keys() & now.keys())
    return [name for name in both if known[name]["version"] == now[name]["version"] and known[name]["source"] != now[name]["source"]]

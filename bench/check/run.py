"""Check one method after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.check import declared, fitting, sampling
from bench.check.outcome import Check, Finding, find
from bench.check.subject import Subject
from bench.check.world import World, full_world, tiny_world
from bench.config import method_config
from bench.errors import BenchError
from bench.registry import method, short_name

CHECKS: tuple[Check, ...] = (*declared.CHECKS, *fitting.CHECKS, *sampling.CHECKS)


@contextmanager
def world_of(full: bool) -> Iterator[World]:
    """The tiny random world, or minicanvas; what methods keep on disk goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        yield full_world(Path(folder)) if full else tiny_world(Path(folder))


def check(name: str, given: Mapping[str, Any], world: World) -> list[Finding]:
    """All findings on a method, by its name or "path/to/file.py:Class". BenchError for parameters that it does not have."""
    try:
        kind = method(name)
    except BenchError as error:
        return [Finding("loads", "failed", str(error), "Mend what is wrong with it.")]
    subject = Subject(short_name(name), kind, given, world)
    if given:
        method_config(subject.name, kind.Config, {**kind.quick, **given})
    try:
        _ = subject.config
    except BenchError as error:
        own = [find(one, subject) for one in CHECKS if one.name in ("card", "bibtex")]
        return [*own, Finding("parameters", "failed", str(error), "Give every field a default that it can have.")]
    return [find(one, subject) for one in CHECKS]


def failed(findings: Sequence[Finding]) -> list[Finding]:
    """Those that tell of a broken contract."""
    return [finding for finding in findings if finding.status == "failed"]

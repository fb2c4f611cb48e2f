"""Execute bundles one after the other on this process's device, whatever breaks in one of them."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence

from bench.engine.stopping import Stopped
from bench.engine.worker import Worker
from bench.errors import BenchError, CannotWriteError
from bench.plan import Unit

ATTEMPTS = 2
"""Of a bundle as a whole; then its units are tried one at a time, so that only what breaks is lost."""


def execute(worker: Worker, bundles: Iterable[Sequence[Unit]]) -> dict[str, str]:
    """Write every unit that can be. Gives tracebacks by method and target of those that broke, whose reasons are in `worker.failed`.

    Ends early, without an error, where the worker is asked to stop. Raises CannotWriteError, as everything else would fail alike.
    """
    broken: dict[str, str] = {}
    try:
        for bundle in bundles:
            _persist(worker, bundle, broken)
    except Stopped:
        pass
    return broken


def _persist(worker: Worker, bundle: Sequence[Unit], broken: dict[str, str]) -> None:
    for _ in range(ATTEMPTS):
        failure = _try(worker, bundle)
        if failure is None:
            return
        worker.warn(f"{failure[0]}: trying again")
    for unit in bundle:
        failure = _try(worker, [unit])
        if failure is not None:
            name = f"{unit.fit.spec.label} on {unit.fit.target}" if unit.fit.target else unit.fit.spec.label
            worker.failed[unit.fit.id], broken[name] = f"broke {ATTEMPTS + 1} times ({failure[0]})", failure[1]
            worker.warn(f"{name} is left out: {failure[0]}")


def _try(worker: Worker, units: Sequence[Unit]) -> tuple[str, str] | None:
    """What broke, in one line and as a traceback: the exception itself would hold the memory of all that it passed through."""
    if worker.stop():
        raise Stopped
    try:
        worker.execute(worker.left(units))
    except (CannotWriteError, Stopped):
        raise
    except Exception as error:  # a method is anybody's code
        line = " ".join(str(error).split())[:200]
        return line if isinstance(error, BenchError) else f"{type(error).__name__}: {line}", "".join(traceback.format_exception(error))
    return None

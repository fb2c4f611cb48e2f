"""Execute bundles one after the other on this process's device, whatever breaks in one of them."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence

from bench.engine.stopping import Stopped
from bench.engine.worker import Worker
from bench.errors import BenchError
from bench.plan import Unit

ATTEMPTS = 2
"""Of a bundle as a whole; then its units are tried one at a time, so that only what breaks is lost."""


def execute(worker: Worker, bundles: Iterable[Sequence[Unit]]) -> dict[str, str]:
    """Write every unit that can be. Gives tracebacks by method and target of those that broke, whose reasons are in `worker.failed`.

    Ends early, without an error, where the worker is asked to stop. Raises BenchError for what would break every bundle, such as a
    full disk.
    """
    broken: dict[str, str] = {}
    try:
        for bundle in bundles:
            _persist(worker, bundle, broken)
            if worker.stop():
                break
    except Stopped:
        pass
    return broken


def _persist(worker: Worker, bundle: Sequence[Unit], broken: dict[str, str]) -> None:
    for _ in range(ATTEMPTS):
        error = _try(worker, bundle)
        if error is None:
            return
        worker.warn(f"{_named(error)}: trying again")
    for unit in bundle:
        error = _try(worker, [unit])
        if error is not None:
            name = f"{unit.fit.spec.label} on {unit.fit.target}" if unit.fit.target else unit.fit.spec.label
            broken[name] = "".join(traceback.format_exception(error))
            worker.failed[unit.fit.id] = f"broke {ATTEMPTS + 1} times ({_named(error)})"
            worker.warn(f"{name} is left out: {_named(error)}")


def _try(worker: Worker, units: Sequence[Unit]) -> Exception | None:
    try:
        worker.execute(worker.left(units))
    except (BenchError, Stopped):
        raise
    except Exception as error:  # a method is anybody's code
        return error
    return None


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

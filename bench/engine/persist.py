"""Fits and bundles on one device, whatever breaks in one of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from bench.attack_plan import AttackUnit
from bench.diffusion.memory import is_out_of_memory
from bench.engine import assault
from bench.engine.stopping import Stopped
from bench.engine.worker import Worker
from bench.errors import BenchError, CannotWriteError, DeviceLostError
from bench.plan import Fit, Unit
from bench.store import Failure

ATTEMPTS = 3
"""Of a fit. Of a bundle all but the last are of the whole; the last is of one unit at a time, so that only what breaks is lost."""


def fit(worker: Worker, fit: Fit) -> None:
    """Make an erasure, or note in `worker.failed` why there is none. Raises what `sample` does."""
    for attempt in range(1, ATTEMPTS + 1):
        failure = _try(worker, lambda: worker.ready(fit))
        if failure is None:
            return
        _again_or_not(worker, fit, failure, attempt)


def sample(worker: Worker, bundle: Sequence[Unit]) -> None:
    """Write every unit that can be; why others cannot is in `worker.failed`.

    Raises Stopped where the worker is asked to stop before anything is begun, CannotWriteError and DeviceLostError, as everything
    else would fail alike.
    """
    for _ in range(ATTEMPTS - 1):
        failure = _try(worker, lambda: worker.execute(worker.left(bundle)))
        if failure is None:
            return
        worker.warn(f"{failure[0]}: trying again")
    for unit in bundle:
        failure = _try(worker, lambda unit=unit: worker.execute(worker.left([unit])))  # type: ignore[misc]
        if failure is not None:
            _again_or_not(worker, unit.fit, failure, ATTEMPTS)


def attack(worker: Worker, bundle: Sequence[AttackUnit]) -> None:
    """The same of a bundle that is attacked: whole, as what is attacked together changes what is found."""
    name = f"{bundle[0].attack.label} on {bundle[0].fit.spec.label}"
    for attempt in range(1, ATTEMPTS + 1):
        if not worker.left(bundle):
            return
        failure = _try(worker, lambda: _attack(worker, name, bundle))
        if failure is None:
            return
        if attempt < ATTEMPTS:
            worker.warn(f"{name}: {failure[0]}: trying again")
        else:
            _leave_out(worker, name, bundle, f"broke {ATTEMPTS} times ({failure[0]})", failure[1])


def _attack(worker: Worker, name: str, bundle: Sequence[AttackUnit]) -> None:
    try:
        assault.attack(worker, bundle)
    except (CannotWriteError, DeviceLostError):
        raise
    except BenchError as error:  # it would say so again
        _leave_out(worker, name, bundle, str(error), None)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        goals = sum(len(unit.requests) for unit in bundle)
        _leave_out(worker, name, bundle, f"memory ran out with {goals} goals at once: --batch-size N attacks at most 2 N together", None)


def _leave_out(worker: Worker, name: str, bundle: Sequence[AttackUnit], reason: str, trace: str | None) -> None:
    for unit in bundle:
        worker.fail_as(unit.id, Failure(name, reason, trace))
    worker.warn(f"{name} is left out: {reason}")


def _again_or_not(worker: Worker, fit: Fit, failure: tuple[str, str], attempt: int) -> None:
    line, trace = failure
    if attempt < ATTEMPTS:
        worker.warn(f"{fit.name}: {line}: trying again")
    else:
        worker.fail(fit, f"broke {ATTEMPTS} times ({line})", trace)
        worker.warn(f"{fit.name} is left out: {line}")


def _try(worker: Worker, work: Callable[[], object]) -> tuple[str, str] | None:
    """What broke, in one line and as a traceback: the exception itself would hold the memory of all that it passed through."""
    if worker.stop():
        raise Stopped
    try:
        work()
    except (CannotWriteError, DeviceLostError, Stopped):
        raise
    except (Exception, SystemExit) as error:  # a method is anybody's code
        line = " ".join(str(error).split())[:200]
        line = line if isinstance(error, BenchError) else f"{type(error).__name__}: {line}"
        worker.check_device(line)
        return line, "".join(traceback.format_exception(error))
    return None

"""A crew of Ray actors, on this machine or a cluster (extra `[ray]`)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench import assets
from bench.engine.job import Failures, Finish, Job, Listener, Outline, Task
from bench.engine.stopping import SIGNALS, Stopped
from bench.errors import BenchError, CannotWriteError
from bench.store import Store

LISTEN = 0.5
"""Seconds after which a stop is noticed."""
REACH = 5.0
"""Seconds in which a cluster answers."""
PATIENCE = 60.0
"""Seconds without a worker after which it is said what is waited for."""


class Actor:
    """A worker in an actor. What it has to tell comes with the answer to each call: (answer, pictures, warnings)."""

    def __init__(self) -> None:
        self.pictures, self.warnings, self.halted = 0, list[str](), False

    def say(self, text: str) -> None:
        """Nobody looks at this process."""

    def advance(self, pictures: int) -> None:
        """Of what is told with the next answer."""
        self.pictures += pictures

    def warn(self, text: str) -> None:
        """Likewise."""
        self.warnings.append(text)

    def open(self, job: Job) -> tuple[Any, int, list[str]]:
        """Load everything; the outline, if the job has no numerics yet."""
        from bench.engine.part import Part

        self.part = Part(job, self, lambda: self.halted)
        return self._told(self.part.outline() if job.numerics is None else None)

    def do(self, task: Task, failed: Failures) -> tuple[Any, int, list[str]]:
        """A task."""
        return self._told(self.part.do(task, failed))

    def finish(self, failed: Failures) -> tuple[Any, int, list[str]]:
        """Cost and records."""
        return self._told(self.part.finish(failed))

    def halt(self) -> None:
        """Finish what is in flight and end. Comes beside a running call."""
        self.halted = True

    def _told(self, answer: Any) -> tuple[Any, int, list[str]]:
        found = answer, self.pictures, self.warnings
        self.pictures, self.warnings = 0, []
        return found


class RayCrew:
    """One actor a GPU, or of so many threads of a CPU; each keeps its model loaded, and one that dies is replaced."""

    def __init__(self, job: Job, workers: int | None, address: str | None, listener: Listener, stop: Callable[[], bool]) -> None:
        try:
            import ray
        except ImportError as error:
            raise BenchError('--engine ray needs Ray, which is not installed: pip install "unlearnbench[ray]".') from error
        self.ray, self.listener, self.stop, self.halted = ray, listener, stop, False
        self.actors: dict[int, Any] = {}
        self.calls: dict[Any, int] = {}
        """Who works on what has not come back."""
        self.opened: set[int] = set()
        self._connect(address)
        try:
            have, on_gpu = ray.cluster_resources(), job.device.startswith("cuda")
            on_gpu = on_gpu or (job.device == "auto" and have.get("GPU", 0) >= 1)
            if on_gpu and not have.get("GPU"):
                raise BenchError(f"--device {job.device}: this Ray cluster has no GPU.")
            threads = _threads(job)
            self.job = replace(job, folder=job.folder.absolute(), device="cuda" if on_gpu else job.device, threads=threads)
            self.kind = ray.remote(num_cpus=1 if on_gpu else threads, num_gpus=int(on_gpu), max_concurrency=2, max_restarts=0)(Actor)
            self._open(0)
            self.outline: Outline = self._answer(0)
            self.job = replace(self.job, numerics=self.outline.numerics)
            room = int(have["GPU"]) if on_gpu else int(have.get("CPU", 1)) // threads
            for number in range(1, min(workers or room, self.outline.tasks)):
                self._open(number)
            self.size = len(self.actors)
        except BaseException:
            self.__exit__()
            raise

    def _connect(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address and address != "auto":
            _reach(address)
        before = {number: signal.getsignal(number) for number in SIGNALS}  # of which it would take one away
        try:
            # Without an address it is this machine, whatever cluster the environment names.
            self.ray.init(address=address or "local", include_dashboard=None if address else False, log_to_driver=False,
                          logging_level=logging.ERROR)  # fmt: skip
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            raise BenchError(f"Ray cannot start ({_line(error)}): look to `ray status`, or use --engine local.") from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _open(self, number: int) -> None:
        # An actor works in a thread of its own, whose part of glibc's heap would be too small for large buffers (`keep_freed_memory`).
        environment = {"OMP_NUM_THREADS": str(self.job.threads), "MALLOC_ARENA_MAX": "1", **assets.environment()}
        self.actors[number] = self.kind.options(runtime_env={"env_vars": environment}).remote()
        self.opened.discard(number)
        self.calls[self.actors[number].open.remote(self.job)] = number
        if self.halted:
            self.actors[number].halt.remote()

    def idle(self) -> list[int]:
        """As every crew does."""
        busy = set(self.calls.values())
        return [number for number in self.actors if number not in busy]

    def give(self, worker: int, task: Task, failed: Failures) -> None:
        """As every crew does."""
        self.calls[self.actors[worker].do.remote(task, dict(failed))] = worker

    def wait(self) -> dict[int, Failures | None]:
        """As every crew does."""
        found: dict[int, Failures | None] = {}
        for call in self._ready(list(self.calls)):
            number = self.calls.pop(call)
            was_open = number in self.opened
            try:
                answer = self._get(call)
            except CannotWriteError:
                raise
            except (BenchError, self.ray.exceptions.RayError) as error:
                if was_open:
                    found[number] = None
                self._replace(number, error)
            else:
                self.opened.add(number)
                if was_open:
                    found[number] = answer
        return found

    def _replace(self, number: int, error: Exception) -> None:
        """Another worker for one that died or could not go on; where it could not even start, the others do without it."""
        self.ray.kill(self.actors.pop(number))
        was_open = number in self.opened
        self.opened.discard(number)
        if not was_open and not self.actors:
            raise (
                error if isinstance(error, BenchError) else BenchError(f"A Ray worker ended while it started ({_line(error)}).")
            ) from error
        if was_open:
            self._open(number)
        else:
            self.listener.warn(f"{_line(error)} The run goes on without it.")

    def finish(self, failed: Failures) -> Finish:
        """As every crew does."""
        while True:
            for number in self.idle():
                self.calls[self.actors[number].finish.remote(dict(failed))] = number
                finish: Finish = self._answer(number)
                return finish
            self.wait()

    def _answer(self, number: int) -> Any:
        """What the call of a worker comes to, however long it takes. Raises Stopped where it would only begin."""
        began, told = time.monotonic(), False
        while True:
            for call in self._ready([call for call, who in self.calls.items() if who == number]):
                del self.calls[call]
                try:
                    answer = self._get(call)
                except self.ray.exceptions.RayError as error:
                    raise BenchError(f"A Ray worker ended ({_line(error)}): give the same command again.") from error
                self.opened.add(number)
                return answer
            if number not in self.opened:
                if self.stop():
                    raise Stopped
                if not told and time.monotonic() - began > PATIENCE:
                    told = True
                    self.listener.warn("Waiting for Ray to start a worker: `ray status` says what the cluster lacks.")

    def _ready(self, calls: list[Any]) -> list[Any]:
        """Those of the calls that have come back, after a moment's patience."""
        if self.stop() and not self.halted:
            self.halted = True
            for actor in self.actors.values():
                actor.halt.remote()
        ready, _ = self.ray.wait(calls, num_returns=1, timeout=LISTEN) if calls else ([], [])
        return list(ready)

    def _get(self, call: Any) -> Any:
        """The answer, with what was told beside it passed on. Raises BenchError as the worker did, RayError if there is no answer."""
        try:
            answer, pictures, warnings = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, BenchError) else error from None
        self.listener.advance(pictures)
        for text in warnings:
            self.listener.warn(text)
        return answer

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()


def _reach(address: str) -> None:
    """BenchError if nobody listens at a host:port, as Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except (OSError, ValueError) as error:
        raise BenchError(
            f"No Ray cluster answers at {address} ({_line(error)}): start one with `ray start --head`, or use --engine local."
        ) from error


def _threads(job: Job) -> int:
    """Of a worker on a CPU: as the run that is continued has it, else as the environment says, else one."""
    kept = Store(job.folder).config().get("numerics", {}).get("threads")
    return int(kept or os.environ.get("OMP_NUM_THREADS") or 1)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

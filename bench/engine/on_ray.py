"""A crew of Ray actors, on this machine or a cluster (extra `[ray]`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.engine.job import Failures, Finish, Job, Listener, Outline, Task
from bench.errors import BenchError

LISTEN = 0.5
"""Seconds after which a stop is noticed."""
PATIENCE = 60.0
"""Seconds without a worker after which it is said what it waits for."""


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

    def __init__(
        self, job: Job, workers: int | None, address: str | None, reporter: Listener, stop: Callable[[], bool]
    ) -> None:  # fmt: skip
        try:
            import ray
        except ImportError as error:
            raise BenchError('--engine ray needs Ray, which is not installed: pip install "unlearnbench[ray]".') from error
        self.ray, self.reporter, self.stop, self.halted = ray, reporter, stop, False
        self._connect(address)
        try:
            on_gpu = job.device.startswith("cuda") or (job.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)
            job = replace(job, folder=job.folder.absolute(), device="cuda" if on_gpu else job.device, threads=job.threads or 1)
            if on_gpu:
                job = replace(job, threads=None)
            self.kind = ray.remote(num_cpus=job.threads or 1, num_gpus=int(on_gpu), max_concurrency=2, max_restarts=0)(Actor)
            self.actors: dict[int, Any] = {}
            self.calls: dict[Any, int] = {}
            self.opened: set[int] = set()
            self.job = job
            self._open(0)
            self.outline: Outline = self._answer(0)
            self.job = replace(job, numerics=self.outline.numerics)
            room = ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1) // (1 if on_gpu else job.threads or 1)
            for number in range(1, min(workers or int(room), self.outline.tasks)):
                self._open(number)
        except BaseException:
            self.__exit__()
            raise

    def _connect(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            # An address of the environment is not for us to use by accident.
            self.ray.init(address=address or "local", include_dashboard=False if not address else None, log_to_driver=False,
                          logging_level=logging.ERROR)  # fmt: skip
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            place = f"No Ray cluster answers at {address}" if address else "Ray cannot start here"
            raise BenchError(f"{place} ({first}): start one with `ray start --head`, or use --engine local.") from error

    def _open(self, number: int) -> None:
        environment = {"env_vars": {"OMP_NUM_THREADS": str(self.job.threads)}} if self.job.threads else {}
        self.actors[number] = self.kind.options(runtime_env=environment).remote()
        self.opened.discard(number)
        self.calls[self.actors[number].open.remote(self.job)] = number

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
        for call in self._ready():
            number = self.calls.pop(call)
            was_open = number in self.opened
            try:
                answer = self._get(call)
            except self.ray.exceptions.RayActorError as error:
                if not was_open:
                    raise BenchError(f"A Ray worker ended while it started ({_line(error)}): look into Ray's logs.") from error
                found[number] = None
                self._open(number)
                continue
            self.opened.add(number)
            if was_open:
                found[number] = answer
        return found

    def finish(self, failed: Failures) -> Finish:
        """As every crew does."""
        self.calls[self.actors[0].finish.remote(dict(failed))] = 0
        finish: Finish = self._answer(0)
        return finish

    def _answer(self, number: int) -> Any:
        """What the one call that runs comes to, however long it takes."""
        while True:
            for call in self._ready():
                if self.calls.pop(call) == number:
                    self.opened.add(number)
                    try:
                        return self._get(call)
                    except self.ray.exceptions.RayActorError as error:
                        raise BenchError(f"A Ray worker ended ({_line(error)}): give the same command again.") from error

    def _ready(self) -> list[Any]:
        """Calls that have come back, after a moment's patience."""
        if self.stop() and not self.halted:
            self.halted = True
            for actor in self.actors.values():
                actor.halt.remote()
        ready, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=LISTEN) if self.calls else ([], [])
        return list(ready)

    def _get(self, call: Any) -> Any:
        """The answer, with what was told beside it passed on. Raises BenchError as the worker did."""
        try:
            answer, pictures, warnings = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, BenchError) else error from None
        self.reporter.advance(pictures)
        for text in warnings:
            self.reporter.warn(text)
        return answer

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

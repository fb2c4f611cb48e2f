"""A crew of processes on this machine, one a device."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

from bench.engine.job import Failures, Finish, Job, Listener, Outline, Task
from bench.engine.stopping import SIGNALS
from bench.errors import BenchError, DeviceLostError

LISTEN = 0.5
"""Seconds after which a stop is noticed."""
LEAVE = 10.0
"""Seconds that an idle worker may take to end."""


@dataclass
class _Hand:
    """A worker process, as seen from here."""

    process: BaseProcess
    connection: Connection
    ready: bool = False
    busy: bool = False


class Processes:
    """Each process keeps its model loaded; one that dies is replaced."""

    def __init__(self, job: Job, devices: Sequence[str], reporter: Listener, stop: Callable[[], bool]) -> None:
        self.devices, self.reporter, self.stop = devices, reporter, stop
        self.context = multiprocessing.get_context("spawn")  # what is forked cannot use CUDA
        self.halt = self.context.Event()
        self.hands: dict[int, _Hand] = {}
        try:
            self.job = job
            self.hands[0] = self._start(0)
            self.outline: Outline = self._answer(0)
            self.job = replace(job, numerics=self.outline.numerics)
            for number in range(1, min(len(devices), self.outline.tasks)):
                self.hands[number] = self._start(number)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, number: int) -> _Hand:
        ours, theirs = self.context.Pipe()
        job = replace(self.job, device=self.devices[number])
        process = self.context.Process(target=_serve, args=(job, theirs, self.halt, os.getpid()), name=f"bench-{number}", daemon=True)
        process.start()
        theirs.close()
        return _Hand(process, ours)

    def idle(self) -> list[int]:
        """As every crew does."""
        return [number for number, hand in self.hands.items() if hand.ready and not hand.busy]

    def give(self, worker: int, task: Task, failed: Failures) -> None:
        """As every crew does."""
        hand = self.hands[worker]
        hand.busy = True
        with suppress(OSError):  # it has died, which `wait` will tell
            hand.connection.send(("do", task, failed))

    def wait(self) -> dict[int, Failures | None]:
        """As every crew does."""
        if self.stop():
            self.halt.set()
        numbers = {hand.connection: number for number, hand in self.hands.items()}
        found: dict[int, Failures | None] = {}
        for connection in wait(list(numbers), timeout=LISTEN):
            number = numbers[connection]  # type: ignore[index]
            message = self._receive(number)
            if message is None:
                if not self.hands[number].ready:
                    raise BenchError(f"A worker process ended {self._how(number)} while it started: try fewer --workers.")
                if self.hands[number].busy:
                    found[number] = None
                self.hands[number] = self._start(number)
            elif message[0] == "done":
                if self.hands[number].busy:
                    found[number] = message[1]
                self.hands[number].ready, self.hands[number].busy = True, False
        return found

    def finish(self, failed: Failures) -> Finish:
        """As every crew does."""
        self.hands[0].connection.send(("finish", failed))
        finish: Finish = self._answer(0)
        return finish

    def _answer(self, number: int) -> Any:
        """What a worker's work comes to, however long it takes."""
        while True:
            if self.stop():
                self.halt.set()
            if self.hands[number].connection.poll(LISTEN):
                message = self._receive(number)
                if message is None:
                    raise BenchError(f"A worker process ended {self._how(number)}: give the same command again.")
                if message[0] == "done":
                    self.hands[number].ready = True
                    return message[1]

    def _receive(self, number: int) -> tuple[str, Any] | None:
        """A message, of which what is for the reporter is passed on; None if the worker has died. Raises what it raised."""
        try:
            kind, value = self.hands[number].connection.recv()
        except (EOFError, OSError):
            return None
        if kind == "error":
            raise value
        if kind != "done":
            getattr(self.reporter, kind)(value)
        return kind, value

    def _how(self, number: int) -> str:
        process = self.hands[number].process
        process.join(LEAVE)
        return f"(exit code {process.exitcode})"

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.halt.set()
        for hand in self.hands.values():
            hand.connection.close()  # which tells it to end
        for hand in self.hands.values():
            hand.process.join(0 if hand.busy else LEAVE)
            hand.process.kill()  # a worker in the middle of something was left behind by an error; its files are whole or absent
            hand.process.join()


class _Wire:
    """The reporter of a worker process: everything goes to the one that started it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def say(self, text: str) -> None:
        self.connection.send(("say", text))

    def advance(self, pictures: int) -> None:
        self.connection.send(("advance", pictures))

    def warn(self, text: str) -> None:
        self.connection.send(("warn", text))


def _serve(job: Job, connection: Connection, halt: Event, parent: int) -> None:
    """A worker process: do what comes until nothing more can come."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; `halt` tells
    if job.threads:
        os.environ["OMP_NUM_THREADS"] = str(job.threads)
    try:
        from bench.engine.part import Part

        part = Part(job, _Wire(connection), lambda: halt.is_set() or os.getppid() != parent)
        connection.send(("done", part.outline() if job.numerics is None else None))
        work: Mapping[str, Callable[..., Any]] = {"do": part.do, "finish": part.finish}
        with suppress(EOFError):
            while True:
                name, *arguments = connection.recv()
                connection.send(("done", work[name](*arguments)))
    except BrokenPipeError:
        pass  # nobody listens any more
    except DeviceLostError as error:
        connection.send(("warn", str(error)))  # another process takes its place
    except BenchError as error:
        with suppress(OSError):
            connection.send(("error", error))

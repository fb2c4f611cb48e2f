"""A crew of processes on this machine, one a device."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bench.engine.job import Failures, Finish, Job, Listener, Outline, Task
from bench.engine.stopping import SIGNALS
from bench.errors import BenchError, CannotWriteError, DeviceLostError

LISTEN = 0.5
"""Seconds after which a stop is noticed."""
LEAVE = 10.0
"""Seconds that an idle worker may take to end."""
_PR_SET_PDEATHSIG = 1
"""As in Linux' prctl.h."""


@dataclass
class _Hand:
    """A worker process, as seen from here."""

    process: BaseProcess
    connection: Connection
    ready: bool = False
    busy: bool = False

    def end(self, seconds: float = 0.0) -> None:
        """Let it go if it is idle; what it is in the middle of is left as by any kill, its files whole or absent."""
        self.connection.close()  # which tells it to end
        self.process.join(seconds if self.ready and not self.busy else 0.0)
        self.process.kill()
        self.process.join()


class Processes:
    """Each process keeps its model loaded; one that dies is replaced."""

    def __init__(self, job: Job, devices: Sequence[str], listener: Listener, stop: Callable[[], bool]) -> None:
        self.devices, self.listener, self.stop = devices, listener, stop
        self.context = multiprocessing.get_context("spawn")  # what is forked cannot use CUDA
        self.halt = self.context.RawValue("b", 0)  # without a lock, which a killed worker might hold for ever
        self.hands: dict[int, _Hand] = {}
        try:
            self.job = job
            self.hands[0] = self._start(0)
            self.outline: Outline = self._answer(0)
            self.job = replace(job, numerics=self.outline.numerics)
            for number in range(1, 1 if stop() else min(len(devices), self.outline.tasks)):
                self.hands[number] = self._start(number)
            self.size = len(self.hands)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, number: int) -> _Hand:
        ours, theirs = self.context.Pipe()
        job = replace(self.job, device=self.devices[number])
        process = self.context.Process(target=_serve, args=(job, theirs, self.halt, os.getpid()), name=f"bench-{number}", daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a terminal sends them to all; a worker learns by `halt`
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
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
        self.halt.value = self.stop()
        numbers = {hand.connection: number for number, hand in self.hands.items()}
        found: dict[int, Failures | None] = {}
        for connection in wait(list(numbers), timeout=LISTEN):
            number = numbers[connection]  # type: ignore[index]
            hand, message = self.hands[number], self._receive(number)
            if message is None or message[0] == "error":
                if hand.busy:
                    found[number] = None
                self._replace(number, message)
            elif message[0] == "done":
                if hand.busy:
                    found[number] = message[1]
                hand.ready, hand.busy = True, False
        return found

    def _replace(self, number: int, message: tuple[str, Any] | None) -> None:
        """Another worker for one that died or could not go on; where it could not even start, the others do without it."""
        hand = self.hands.pop(number)
        error = message[1] if message else BenchError(f"A worker process ended {_how(hand)}.")
        hand.end()
        if isinstance(error, CannotWriteError) or (not hand.ready and not self.hands):
            raise error
        if message or not hand.ready:
            self.listener.warn(str(error) if hand.ready else f"{error} The run goes on without it.")
        if hand.ready:
            self.hands[number] = self._start(number)

    def finish(self, failed: Failures) -> Finish:
        """As every crew does."""
        while True:
            self.halt.value = self.stop()
            for number in self.idle():
                with suppress(OSError):
                    self.hands[number].connection.send(("finish", failed))
                    self.hands[number].busy = True
                    finish: Finish = self._answer(number)
                    return finish
            self.wait()

    def _answer(self, number: int) -> Any:
        """What a worker's work comes to, however long it takes."""
        while True:
            self.halt.value = self.stop()
            if self.hands[number].connection.poll(LISTEN):
                message = self._receive(number)
                if message is None:
                    raise BenchError(f"A worker process ended {_how(self.hands[number])}: give the same command again.")
                if message[0] == "error":
                    raise message[1]
                if message[0] == "done":
                    self.hands[number].ready, self.hands[number].busy = True, False
                    return message[1]

    def _receive(self, number: int) -> tuple[str, Any] | None:
        """A message, of which what is for the listener is passed on; None if the worker has died."""
        try:
            kind, value = self.hands[number].connection.recv()
        except (EOFError, OSError):
            return None
        if kind in ("say", "advance", "warn"):
            getattr(self.listener, kind)(value)
        return kind, value

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.halt.value = True
        for hand in self.hands.values():
            hand.end(LEAVE)


def _how(hand: _Hand) -> str:
    hand.process.join(LEAVE)
    return f"(exit code {hand.process.exitcode})"


class _Wire:
    """The listener of a worker process: everything goes to the one that started it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def say(self, text: str) -> None:
        self.connection.send(("say", text))

    def advance(self, pictures: int) -> None:
        self.connection.send(("advance", pictures))

    def warn(self, text: str) -> None:
        self.connection.send(("warn", text))


def _serve(job: Job, connection: Connection, halt: Any, parent: int) -> None:
    """A worker process: do what comes until nothing more can come."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _die_with(parent)
    if job.threads:
        os.environ["OMP_NUM_THREADS"] = str(job.threads)
    try:
        from bench.engine.part import Part

        part = Part(job, _Wire(connection), lambda: bool(halt.value))
        connection.send(("done", part.outline() if job.numerics is None else None))
        work: Mapping[str, Callable[..., Any]] = {"do": part.do, "finish": part.finish}
        while True:
            name, *arguments = connection.recv()
            connection.send(("done", work[name](*arguments)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # nobody listens any more
    except DeviceLostError as error:
        connection.send(("warn", str(error)))  # another process takes its place
    except BenchError as error:
        connection.send(("error", error))


def _die_with(parent: int) -> None:
    """End with the process that started this one, however it ends: what is left behind would hold the device."""
    with suppress(AttributeError, OSError, TypeError):  # Linux knows how
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

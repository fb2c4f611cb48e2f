"""How a run is stopped from outside: what is in flight is finished and written, the rest is for the same command again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOLD = b"stopping: what is in flight is finished and written; once more stops at once\n"


class Stopped(Exception):  # noqa: N818
    """Raised where work cannot go on because a stop was asked for. No `BenchError`: nothing is wrong."""


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether SIGINT or SIGTERM has come; a second one ends the process at once. For the main thread."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked = True
        os.write(2, TOLD)  # nothing that might wait for a lock which the interrupted code holds

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

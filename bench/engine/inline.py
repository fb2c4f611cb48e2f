"""The crew of one: this process."""

from __future__ import annotations

from collections.abc import Callable

from bench.engine.job import Failures, Finish, Job, Listener, Task
from bench.engine.part import Part


class Inline:
    """Does every task at once, while it is given."""

    def __init__(self, job: Job, listener: Listener, stop: Callable[[], bool]) -> None:
        self.part = Part(job, listener, stop)
        self.outline = self.part.outline()
        self.size = 1
        self.ended: dict[int, Failures | None] = {}

    def idle(self) -> list[int]:
        """As every crew does."""
        return [] if self.ended else [0]

    def give(self, worker: int, task: Task, failed: Failures) -> None:
        """As every crew does."""
        self.ended[worker] = self.part.do(task, failed)

    def wait(self) -> dict[int, Failures | None]:
        """As every crew does."""
        ended, self.ended = self.ended, {}
        return ended

    def finish(self, failed: Failures) -> Finish:
        """As every crew does."""
        return self.part.finish(failed)

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        return None

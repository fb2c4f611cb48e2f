"""What a long command shows while it works."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.cli_options import err
from bench.progress import duration

LINE_EVERY = 30.0
"""Seconds between lines where there is no terminal."""


class Bar:
    """The run's `Reporter`: what is done, pictures a second, time left; a bar on a terminal, plain lines in a log."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.told = progress, time.monotonic()
        self.task: TaskID = progress.add_task("loading torch, the model and the judges", total=None, units="")

    def say(self, text: str) -> None:
        """See `bench.engine.job.Reporter`."""
        self.progress.update(self.task, description=text)
        self._line()

    def total(self, pictures: int, done: int) -> None:
        """See `bench.engine.job.Reporter`."""
        if done:
            err.print(f"{done} of {pictures} pictures are there already")
        self.progress.update(self.task, total=pictures - done)

    def units(self, done: int, units: int, failed: int) -> None:
        """See `bench.engine.job.Reporter`."""
        self.progress.update(self.task, units=f"{done} of {units} units" + (f", {failed} failed" if failed else ""))

    def advance(self, pictures: int) -> None:
        """See `bench.engine.job.Reporter`."""
        self.progress.advance(self.task, pictures)
        self._line()

    def _line(self) -> None:
        """One, where there is no terminal and the last is old enough."""
        now, console = time.monotonic(), self.progress.console
        if console.is_terminal or now - self.told < LINE_EVERY:
            return
        self.told, task = now, next(task for task in self.progress.tasks if task.id == self.task)
        parts = [f"{task.completed:.0f} of {task.total:.0f} pictures"] if task.total else []
        parts += [task.fields["units"]] if task.fields["units"] else []
        parts += [f"{task.speed:.1f} pictures/s"] if task.speed and not task.finished else []
        parts += [f"{duration(task.time_remaining)} left"] if task.time_remaining else []
        console.print(": ".join([", ".join(parts) or "so far", task.description]), markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """See `bench.engine.job.Reporter`."""
        err.print(text, style="yellow", markup=False, highlight=False)


class _Rate(TextColumn):
    """Pictures a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        return f"{task.speed:.1f} pictures/s" if task.speed else ""


def progress_bar() -> Progress:
    """For a `Bar`; it goes when it is done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[units]}"), _Rate(),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=err, transient=True)

"""What a long command shows while it works."""

from __future__ import annotations

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


class Bar:
    """The run's `Reporter` on a terminal: what is done, pictures a second, time left."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: TaskID = progress.add_task("loading torch, the model and the judges", total=None)

    def say(self, text: str) -> None:
        """See `bench.engine.job.Reporter`."""
        self.progress.update(self.task, description=text)

    def total(self, pictures: int, done: int) -> None:
        """See `bench.engine.job.Reporter`."""
        if done:
            err.print(f"{done} of {pictures} pictures are there already")
        self.progress.update(self.task, total=pictures - done)

    def advance(self, pictures: int) -> None:
        """See `bench.engine.job.Reporter`."""
        self.progress.advance(self.task, pictures)

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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True)

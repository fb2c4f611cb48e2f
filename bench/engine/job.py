"""What the processes of a run tell each other. All of it can be pickled; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from bench.config import WHOLE, CompileChoice, DTypeName, Resume, RunConfig, Shard
from bench.store import Failure

Failures = Mapping[str, Failure]
"""By the id of the fit."""


@dataclass(frozen=True)
class Job:
    """A run as it was asked for: all that a process needs to take part in it."""

    config: RunConfig
    folder: Path
    device: str = "auto"
    dtype: DTypeName = "auto"
    compile: CompileChoice = "auto"
    sharing: bool = True
    resume: Resume = "missing"
    shard: Shard = WHOLE
    threads: int | None = None
    """Of a CPU; None: as torch has it."""
    numerics: Mapping[str, Any] | None = None
    """As the first process fixed them; None for that process itself, which also writes what describes the run."""


class Portion(NamedTuple):
    """A bundle of which something is left."""

    bundle: int
    """Its place in the plan."""
    units: tuple[str, ...]
    """Of each of its units, the id of the fit."""
    weights: str
    """The fit that changes weights, or nothing."""
    blame: tuple[str, ...]
    """Of each unit, under what it is noted that it could not be done."""


class Outline(NamedTuple):
    """What there is to do, as the first process finds it."""

    protocol: str
    numerics: Mapping[str, Any]
    planned: int
    """Pictures of the whole plan."""
    pictures: int
    """Of this shard."""
    done: int
    """Of these, those that are there."""
    fits: tuple[str, ...]
    """Ids of what is to be fitted, in order."""
    names: Mapping[str, str]
    """Method and target of every fit that is needed, by id."""
    portions: tuple[Portion, ...]
    seconds: float = 0.0
    """What a picture takes one worker, by UNet calls that were just timed, alone: shared trajectories only take less."""
    gathered: int = 0
    """Pictures more that fits look at first, from which latents are chosen; none if they were looked at before."""

    @property
    def tasks(self) -> int:
        """How many workers can have something to do."""
        return len(self.fits) + len(self.portions)


class Task(NamedTuple):
    """One thing for one worker."""

    kind: Literal["fit", "bundle", "unit"]
    fit: str = ""
    bundle: int = -1
    unit: int = -1
    """Its place in the bundle."""


class Finish(NamedTuple):
    """How a run stands at its end."""

    written: bool
    """Whether records were."""
    left: int
    """Pictures that are not sampled: the run was stopped, or they are another shard's."""
    failed: Failures


class Listener(Protocol):
    """Whom a part of a run tells how it goes."""

    def say(self, text: str) -> None:
        """What is being done now."""

    def advance(self, pictures: int) -> None:
        """So many more pictures are sampled."""

    def warn(self, text: str) -> None:
        """Something that the user should see afterwards too."""


class Reporter(Listener, Protocol):
    """What shows it to the user."""

    def total(self, pictures: int, done: int) -> None:
        """How many pictures there are to sample, and how many are there already."""

    def units(self, done: int, units: int, failed: int) -> None:
        """How many units are done with, of how many there were to do, and how much failed."""


class Crew(Protocol):
    """The workers of a run, by number. A context: at its end they are gone."""

    outline: Outline
    size: int
    """How many workers."""

    def idle(self) -> Iterable[int]:
        """Those who are ready for a task."""

    def give(self, worker: int, task: Task, failed: Failures) -> None:
        """A task for one who is idle, and what is known to have failed."""

    def wait(self) -> Mapping[int, Failures | None]:
        """Who has ended a task since, with what failed; None for one who died of it and is replaced. May be nobody."""

    def finish(self, failed: Failures) -> Finish:
        """Measure cost and write records where nothing is left."""

    def __enter__(self) -> Crew: ...

    def __exit__(self, *error: object) -> None: ...

"""Who does what next: fits first, each once, then bundles, so that few weights are loaded twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from bench.engine.job import Crew, Outline, Portion, Reporter, Task
from bench.store import Failure

DEATHS = 2
"""Workers that a task may cost; then a bundle is done a unit at a time, and anything else is given up."""


def dispatch(crew: Crew, reporter: Reporter, stop: Callable[[], bool]) -> dict[str, Failure]:
    """Do all that the crew's outline says, and give what failed, by the id of the fit. Once `stop()`, nothing more is begun."""
    queue = _Queue(crew.outline)
    failed: dict[str, Failure] = {}
    reporter.units(0, queue.units, 0)
    while True:
        for worker in [] if stop() else list(crew.idle()):
            task = queue.take(worker)
            if task is not None:
                crew.give(worker, task, failed)
        if not queue.running and (stop() or not queue.waiting):
            return failed
        for worker, receipt in crew.wait().items():
            task = queue.running.pop(worker)
            if receipt is not None:
                failed |= receipt
                queue.unfitted.discard(task.fit)
            else:
                queue.holds.pop(worker, None)
                reporter.warn(f"A worker process ended in the middle of {queue.words(task)}: another takes its place")
                failed |= queue.again(task)
            reporter.units(queue.units - queue.left, queue.units, len(failed))


class _Queue:
    """What is left to do, and who does what."""

    def __init__(self, outline: Outline) -> None:
        self.names, self.known = outline.names, {portion.bundle: portion for portion in outline.portions}
        self.units = sum(len(portion.units) for portion in outline.portions)
        self.fits = list(outline.fits)
        self.portions = dict(self.known)
        self.single: list[Task] = []
        """Units of bundles that ended their workers."""
        self.unfitted = set(self.fits)
        self.running: dict[int, Task] = {}
        self.holds: dict[int, str] = {}
        """The weights that a worker has loaded."""
        self.deaths: Counter[Task] = Counter()

    @property
    def left(self) -> int:
        """Units that are not made."""
        bundles = [*self.portions, *(task.bundle for task in self.running.values() if task.kind == "bundle")]
        single = len(self.single) + sum(task.kind == "unit" for task in self.running.values())
        return single + sum(len(self.known[bundle].units) for bundle in bundles)

    @property
    def waiting(self) -> bool:
        """Whether anything is left to begin."""
        return bool(self.fits or self.portions or self.single)

    def take(self, worker: int) -> Task | None:
        """The next task of a worker; None if all that is left waits for fits of others."""
        task = self._next(worker)
        if task is not None:
            self.running[worker] = task
        return task

    def _next(self, worker: int) -> Task | None:
        if self.fits:
            return Task("fit", fit=self.fits.pop(0))
        ready = [portion for portion in self.portions.values() if self.unfitted.isdisjoint(portion.units)]
        if ready:
            portion = min(ready, key=lambda one: self._rank(worker, one))
            self.holds[worker] = portion.weights
            del self.portions[portion.bundle]
            return Task("bundle", bundle=portion.bundle)
        return self.single.pop(0) if self.single else None

    def _rank(self, worker: int, portion: Portion) -> tuple[int, int]:
        """First what needs no other weights than are loaded, then what nobody else has begun, in the plan's order."""
        if portion.weights == self.holds.get(worker, ""):
            return 0, portion.bundle
        others = {self.holds.get(other, "") for other in self.running if other != worker}
        return 1 + (portion.weights in others), portion.bundle

    def again(self, task: Task) -> dict[str, Failure]:
        """Put a task back whose worker died, or give what is given up."""
        self.deaths[task] += 1
        if task.kind == "bundle" and self.deaths[task] == DEATHS:
            self.single += [Task("unit", bundle=task.bundle, unit=unit) for unit in range(len(self.known[task.bundle].units))]
        elif task.kind == "bundle":
            self.portions[task.bundle] = self.known[task.bundle]
        elif self.deaths[task] == DEATHS:
            self.unfitted.discard(task.fit)
            fit = task.fit or self.known[task.bundle].blame[task.unit]
            return {fit: Failure(self.names[fit], f"ended its process {DEATHS} times", f"{self.words(task)} ended its process")}
        elif task.kind == "fit":
            self.fits.insert(0, task.fit)
        else:
            self.single.append(task)
        return {}

    def words(self, task: Task) -> str:
        """What it is, for people."""
        if task.kind == "fit":
            return f"fitting {self.names[task.fit]}"
        return f"bundle {task.bundle + 1}" + (f", unit {task.unit + 1}" if task.kind == "unit" else "")

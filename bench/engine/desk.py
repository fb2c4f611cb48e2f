"""Where finished pictures become units: a unit is written when the last of its pictures has its verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from threading import Lock

import pandas as pd

from bench.config import Images
from bench.diffusion.sampler import Finished
from bench.plan import Unit
from bench.scoring import Scorer, Verdict, kept


@dataclass(eq=False)
class _Open:
    """A unit that is not complete."""

    unit: Unit
    keep: list[bool]
    left: int
    verdicts: list[Verdict | None]
    first_edit: list[int | None]
    broken_at: list[int | None]


@dataclass
class Desk:
    """The rows of all units, one after the other, on their way to `write(unit, frame)`."""

    units: Sequence[Unit]
    scorer: Scorer
    images: Images
    watched: Set[str]
    """Ids of the fits with activation edits, of which is told when they first acted."""
    write: Callable[[Unit, pd.DataFrame], None]
    written: set[str] = field(default_factory=set)
    """Ids of units."""

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._open: list[_Open] = []
        self._home: list[tuple[int, int]] = []
        self._rows: dict[int, list[int]] = {}
        for unit in self.units:
            n = len(unit.requests)
            self._home += [(len(self._open), place) for place in range(n)]
            self._open.append(_Open(unit, kept(self.images, unit.requests, unit.fit.target), n, [None] * n, [None] * n, [None] * n))

    def expect(self, done: Finished) -> int:
        """Rows that ended as one, whose verdict is to come under the key returned."""
        self._rows[done.rows[0]] = done.rows
        for row in done.rows:
            home, place = self._home[row]
            self._open[home].first_edit[place] = done.first_edit
            self._open[home].broken_at[place] = done.step if done.latent is None else None
        return done.rows[0]

    def keeps(self, rows: Sequence[int]) -> bool:
        """Whether any of the units wants the picture's bytes."""
        return any(self._open[home].keep[place] for home, place in (self._home[row] for row in rows))

    def names(self, rows: Sequence[int]) -> str:
        """Whose rows they are."""
        fits = [self._open[self._home[row][0]].unit.fit for row in rows]
        return ", ".join(dict.fromkeys(f"{fit.spec.label} on {fit.target}" if fit.target else fit.spec.label for fit in fits))

    def deliver(self, key: int, verdict: Verdict | None) -> None:
        """The verdict on the rows of a key; units that are complete with it are written. From any thread."""
        with self._lock:
            self._deliver(key, verdict)

    def _deliver(self, key: int, verdict: Verdict | None) -> None:
        for row in self._rows.pop(key):
            home, place = self._home[row]
            own = self._open[home]
            own.verdicts[place] = verdict
            own.left -= 1
            if not own.left:
                self._finish(own)

    def _finish(self, own: _Open) -> None:
        frame = self.scorer.outcomes(own.unit.requests, own.verdicts, own.keep)
        edits = own.first_edit if own.unit.fit.id in self.watched else [None] * len(frame)
        self.write(own.unit, frame.assign(first_edit=pd.array(edits, dtype="Int64"), broken_at=pd.array(own.broken_at, dtype="Int64")))
        self.written.add(own.unit.id)
        own.verdicts = []  # a bundle's pictures need not all stay in memory

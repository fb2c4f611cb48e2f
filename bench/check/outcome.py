"""How a check ends. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from bench.errors import told

Status = Literal["ok", "skipped", "failed"]


class BrokenError(Exception):
    """The method breaks its contract: what happened and where, and how to mend it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.mend = mend


class SkippedError(Exception):
    """There is nothing to check, or it cannot be; the reason."""


class Check(NamedTuple):
    """One clause of the contract."""

    name: str
    what: str
    """What holds if it is kept."""
    run: Callable[[Any], None]
    """Given a `bench.check.subject.Subject`; raises `BrokenError` or `SkippedError`."""


class Finding(NamedTuple):
    """How a method does in a check."""

    check: str
    status: Status
    text: str
    """What holds, why it was skipped, or what is wrong and where."""
    mend: str = ""


def find(check: Check, subject: Any) -> Finding:
    """Run a check. What a method raises itself is a failure too."""
    try:
        check.run(subject)
        return Finding(check.name, "ok", check.what)
    except SkippedError as reason:
        return Finding(check.name, "skipped", str(reason))
    except BrokenError as error:
        return Finding(check.name, "failed", str(error), error.mend)
    except Exception as error:  # a plug-in's own code
        return Finding(check.name, "failed", f"It broke: {told(error)}.", "Mend what raises this.")

"""The one exception that users see: a single sentence with what is wrong and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A mistake that the user can mend; the command line prints it and exits with status 2."""


class CannotWriteError(BenchError):
    """The folder takes nothing more: whatever comes next would fail alike."""


class DeviceLostError(BenchError):
    """The device answers nothing more in this process."""


def unknown(what: str, name: str, known: Iterable[str]) -> BenchError:
    """`Unknown method "uec": did you mean "uce"?`, or the list of what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(names)}." if names else "there are none."
    return BenchError(f'Unknown {what} "{name}": {hint}')

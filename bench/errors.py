"""The one exception that users see: a single sentence with what is wrong and how to mend it."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class BenchError(Exception):
    """A mistake that the user can mend; the command line prints it and exits with status 2."""


class CannotWriteError(BenchError):
    """The folder takes nothing more: whatever comes next would fail alike."""


class DeviceLostError(BenchError):
    """The device answers nothing more in this process."""


def unknown(what: str, name: str, known: Iterable[str]) -> BenchError:
    """`Unknown method "uec": did you mean "uce"?`, or the list of what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), [one.lower() for one in names], n=1, cutoff=0.6)
    likely = next((one for one in names if [one.lower()] == close), None)
    hint = f'did you mean "{likely}"?' if likely else f"there are {', '.join(names)}." if names else "there are none."
    return BenchError(f'Unknown {what} "{name}": {hint}')


def told(error: BaseException) -> str:
    """`ValueError: no such thing (my_method.py, line 12)`: what was raised, and the last line of the user's own code on the way."""
    what = f"{type(error).__name__}: {error}".split("\n")[0].removesuffix(": ")
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _foreign(Path(frame.filename))]
    return f"{what} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else what


def _foreign(file: Path) -> bool:
    """Whether it is of Python, torch or this package."""
    python = file.is_relative_to(Path(traceback.__file__).parent) and "site-packages" not in file.parts
    return str(file).startswith("<") or python or "torch" in file.parts or file.is_relative_to(Path(__file__).parent)

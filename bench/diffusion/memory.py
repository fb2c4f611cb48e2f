"""How much memory something takes, and how much there is."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""As in glibc's malloc.h."""
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory")
"""In what a CPU's allocator says, which raises no kind of its own."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's allocator raised it."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


class PeakMemory:
    """Most memory in use while it is open, above what was in use before, in MB: the device's on CUDA, the process's on Linux.

    `peak_mb` is None where the system does not say.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_mb: float | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device) / 1e6
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets the process's high-water mark (man 5 proc)
            self._before = process_mb("VmRSS") or 0.0
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        on_cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) / 1e6 if on_cuda else process_mb("VmHWM")
        self.peak_mb = None if peak is None else max(0.0, peak - self._before)


def process_mb(field: str, process: int | str = "self") -> float | None:
    """A field of Linux's account of a process in MB, such as VmHWM, the most that it ever held; None where there is none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{field}:")), None)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next use, as far as that is possible; see also `release_freed_memory`.

    By default it maps buffers over 32 MB anew each time, and the system fills them with zeros page by page: in UNet calls of 64
    slots 25,000 to 70,000 page faults a call, a tenth to a quarter of its time.
    """
    with suppress(AttributeError, OSError, TypeError):  # other C libraries have no mallopt, Windows no such handle
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Give the system back what glibc keeps, so that what is used from here on shows as such, not as what was there before."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_mb(device: torch.device) -> float | None:
    """What may still be taken, in MB; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e6
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("MemAvailable:")), None)

"""Give freed memory back to the system, or keep it on purpose.

The allocator of glibc keeps freed blocks below its mmap threshold, so a walk over many tensors of different sizes would seem to
grow with their number. MLX on a CPU allocates through it.
"""

from __future__ import annotations

import ctypes
import os
import sys

import mlx.core as mx

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, malloc.h of glibc


def trim() -> None:
    """Return what is free; does nothing where the C library has no `malloc_trim`."""
    if sys.platform != "linux":
        return
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


def retain(most_bytes: int = (1 << 31) - 1) -> None:
    """From now on keep up to so many freed bytes, for the next step of a loop that asks for the same sizes again.

    glibc unmaps a freed block of more than 32 MB at once, and the next one of its size costs a page fault per 4 kB (on virtual
    machines about 2 us each: a 64 MB softmax took 50 ms with them and 21 ms without). `trim` still gives everything back.
    Does nothing where the C library has no `mallopt`.

    Args:
        most_bytes: below 2^31; blocks larger than half of it go back at once, as before.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, most_bytes)
        set_option(_MMAP_THRESHOLD, most_bytes // 2)


def available_bytes() -> int:
    """Memory that this process could take without driving others out; on macOS, what Metal recommends as a working set."""
    if sys.platform == "linux":
        try:
            with open("/proc/meminfo") as lines:
                return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        except (OSError, StopIteration):
            pass
    recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
    return recommended or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

"""Give freed memory back to the system.

The allocator of glibc keeps freed blocks below its mmap threshold, so a walk over many tensors of different sizes would seem to
grow with their number. MLX on a CPU allocates through it.
"""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Return what is free; does nothing where the C library has no `malloc_trim`."""
    if sys.platform != "linux":
        return
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)

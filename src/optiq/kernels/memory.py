"""How much memory there is; give freed memory back to the system, or keep it on purpose.

The allocator of glibc keeps freed blocks below its mmap threshold, so a walk over many tensors of different sizes would seem to
grow with their number. MLX on a CPU allocates through it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, malloc.h of glibc

# Versions 2 and 1 of control groups, as a container sees its own.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


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
    """As `usable_bytes`, less what other processes hold where the system tells."""
    try:
        with open("/proc/meminfo") as lines:
            free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return usable_bytes()
    return min(free, usable_bytes())


def usable_bytes() -> int:
    """Bytes that a model, its caches and the process can take on this machine's default device.

    On a GPU what the driver recommends (Metal) or has in all (CUDA). On a CPU the physical memory, or what a container allows
    where that is less; what other processes hold is not counted.
    """
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.gpu:
        info = mx.device_info()
        known = [info.get(key) for key in ("max_recommended_working_set_size", "total_memory")]
        if found := next((int(value) for value in known if value), None):
            return found
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_container_limits()])


def _container_limits() -> list[int]:
    """Limits of this process's control group, if any; "max" and files that are not there say nothing."""
    texts = [path.read_text().strip() for path in _LIMITS if path.is_file()]
    return [int(text) for text in texts if text.isdecimal()]

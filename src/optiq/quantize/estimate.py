"""What a conversion will take, said before it starts: memory, disk and the order of magnitude of the time.

From shapes alone. Time is matrix products over a rate that is measured in a tenth of a second here; it leaves out what is not a
matrix product and is rounded up to be useful, not exact.
"""

from __future__ import annotations

import time
from math import prod

import mlx.core as mx

from optiq import files
from optiq.measure.hidden import FLOAT32_BYTES
from optiq.measure.statistics import product_operations
from optiq.quantize.stages import Job

OVERHEAD = 5.0  # wall time over the time of the products alone, measured on the embedded model


def announce(job: Job) -> None:
    """Print the expected time, memory and disk; refuse where the disk cannot hold it.

    Raises:
        ResourceError: less free disk than the conversion needs.
    """
    disk = disk_bytes(job)
    files.need_free(job.space.path, disk, "the conversion's work files and result")
    job.events.info(
        f"expected: about {_duration(seconds(job))}, {files.size_text(memory_bytes(job))} of memory, "
        f"up to {files.size_text(disk)} of disk"
    )


def seconds(job: Job) -> float:
    """Expected wall time in seconds."""
    s = job.settings
    options = len(s.candidate_bits) * len(s.group_sizes)
    sizes = sum(prod(t.shape) for t in job.topology.tensors)
    work = 2.0 * options * sizes * 30  # searching codes: about thirty passes over each weight and option
    if job.text is not None:
        tokens, scored = job.text.calibration.ids.size, job.text.dev.ids.size + job.text.score.ids.size
        if s.sensitivity == "fisher":
            work += 2.0 * product_operations(job.stream, tokens, 0)
        if s.sensitivity == "kl":
            work += 2.0 * options * len(job.topology.tensors) * tokens * sizes
        work += 2.0 * sizes * (2 * tokens + (4 * scored if s.verify else 0))
    return OVERHEAD * work / rate()


def memory_bytes(job: Job) -> int:
    """Expected peak: the largest block in float32 with its second moments, or the largest tensor, and a base."""
    tensors = job.topology.tensors
    largest = max(prod(t.shape) for t in tensors)
    blocks = [sum(4 * prod(t.shape) + 8 * t.shape[-1] ** 2 for t in job.topology.of_block(i)) for i in range(job.stream.depth)]
    runs_model = job.text is not None
    outside = 4 * sum(prod(t.shape) for t in job.topology.of_block(None)) if runs_model else 0
    return 700_000_000 + (max(blocks, default=0) + outside if runs_model else 2 * largest)


def disk_bytes(job: Job) -> int:
    """Expected peak on disk: result, codes, second moments, hidden states."""
    tensors = job.topology.tensors
    weights = sum(prod(t.shape) for t in tensors)
    needed = 2 * 2 * weights  # codes in the work directory and in the result, at most 16 bits each
    if job.text is not None:
        needed += sum(4 * t.shape[-1] ** 2 for t in tensors)
        width = min(t.shape[-1] for t in tensors if t.kind == "embedding") if any(t.kind == "embedding" for t in tensors) else 0
        hidden = 4 * job.text.calibration.ids.size * width * (job.stream.depth + 3)
        needed += hidden // 2 if hidden > FLOAT32_BYTES else hidden
    return needed


def rate() -> float:
    """Operations per second of a float32 product on this machine."""
    a = mx.ones((512, 1024))
    b = mx.ones((1024, 1024))
    mx.eval(a @ b)
    start = time.perf_counter()
    mx.eval(a @ b)
    return 2.0 * 512 * 1024 * 1024 / max(time.perf_counter() - start, 1e-9)


def _duration(value: float) -> str:
    if value < 90:
        return f"{max(5, round(value / 5) * 5)} s"
    return f"{round(value / 60)} min" if value < 5400 else f"{value / 3600:.1f} h"

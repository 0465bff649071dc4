"""What a conversion will take, said before it starts: memory, disk and the order of magnitude of the time.

From shapes alone. Time is matrix products over a rate that is measured in a tenth of a second here, and a constant per tensor.
What an earlier run has left is not taken off.
"""

from __future__ import annotations

import statistics
import time
from math import prod

import mlx.core as mx

from optiq import files
from optiq.kernels.dense import dense
from optiq.measure.hidden import FLOAT32_BYTES
from optiq.measure.statistics import product_operations
from optiq.quantize.stages import Job

SEARCH_PASSES = 30  # over each weight, for the codes of one option
# Wall time over that of the products alone, and seconds per tensor for all that does not grow with it: from conversions of 4B
# shapes, where the first is nearly everything, and of the embedded model.
OVERHEAD, TENSOR_SECONDS = 1.8, 1.0


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
    return OVERHEAD * 2.0 * multiply_adds(job) / rate() + TENSOR_SECONDS * len(job.topology.tensors)


def multiply_adds(job: Job) -> float:
    """Of the matrix products of all stages, and the passes of the search for codes.

    Error feedback for [O, I] is an inverse factor, I³, and O I² / 2 of updates; the refit after it takes O I² more. The
    divergence is two models forward over the *dev* and over the *score* text.
    """
    s, tensors = job.settings, job.topology.tensors
    options = len(s.candidate_bits) * len(s.group_sizes)
    sizes = float(sum(prod(t.shape) for t in tensors))
    work = options * sizes * SEARCH_PASSES
    if job.text is None:
        return work
    tokens, dev, score = (int(found.ids.size) for found in (job.text.calibration, job.text.dev, job.text.score))
    if s.sensitivity == "fisher":
        work += product_operations(job.stream, tokens, options)
    if s.sensitivity == "kl":
        work += options * len(tensors) * tokens * sizes
    if s.encoder == "gptq":
        squares = float(sum(t.shape[-1] ** 2 for t in tensors))
        work += (tokens + dev) * (sizes + squares)
        work += sum(float(t.shape[-1]) ** 3 + prod(t.shape) * t.shape[-1] * (1.5 if s.refit else 0.5) for t in tensors)
    return work + (2 * (dev + score) * sizes if s.verify else 0)


def memory_bytes(job: Job) -> int:
    """Expected peak: the largest block in float32 with its second moments, or the largest tensor, and a base.

    The divergence has what lies outside the blocks of both models in memory.
    """
    tensors = job.topology.tensors
    largest = max(prod(t.shape) for t in tensors)
    blocks = [sum(4 * prod(t.shape) + 8 * t.shape[-1] ** 2 for t in job.topology.of_block(i)) for i in range(job.stream.depth)]
    runs_model = job.text is not None
    outside = 4 * sum(prod(t.shape) for t in job.topology.of_block(None)) if runs_model else 0
    beside = max([*blocks, outside if job.settings.verify else 0])
    return 700_000_000 + (beside + outside if runs_model else 2 * largest)


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
    """Operations per second of one float32 product as layers compute it on this machine: the median of five."""
    x, w = mx.ones((512, 1024)), mx.ones((1024, 1024))
    mx.eval(dense(x, w))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        mx.eval(dense(x, w))
        times.append(time.perf_counter() - start)
    return 2.0 * 512 * 1024 * 1024 / max(statistics.median(times), 1e-9)


def _duration(value: float) -> str:
    if value < 90:
        return f"{max(5, round(value / 5) * 5)} s"
    return f"{round(value / 60)} min" if value < 5400 else f"{value / 3600:.1f} h"

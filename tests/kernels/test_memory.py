"""Freed memory, kept or given back: a fresh process, because the allocator's settings hold for all of one."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")

PROGRAM = """
import resource, mlx.core as mx
from optiq.kernels import memory
if {keep}:
    memory.retain()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    mx.eval(mx.zeros((48 << 20,), mx.int8) + 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
steps = [step() for _ in range(5)]
memory.trim()
print(min(steps[1:]), int(open("/proc/self/statm").read().split()[1]) * 4096)
"""


def measure(keep: bool) -> tuple[int, int]:
    """Page faults of a step that was done before, and resident bytes at the end."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True, check=True)
    faults, resident = map(int, done.stdout.split())
    return faults, resident


def test_retained_memory_costs_no_page_faults_and_trim_gives_it_back() -> None:
    faults, resident = measure(keep=True)
    plain_faults, plain_resident = measure(keep=False)
    assert faults < plain_faults / 10
    assert resident < plain_resident + (24 << 20)

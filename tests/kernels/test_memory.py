"""How much memory there is; freed memory, kept or given back: in a process of its own, where settings of the allocator last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from optiq.kernels import memory

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


def test_usable_memory_is_what_a_container_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    physical = 1024 * int(Path("/proc/meminfo").read_text().partition("MemTotal:")[2].split()[0])
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMITS", (limit, tmp_path / "absent"))
    assert memory.usable_bytes() == physical
    for text, expected in (("max\n", physical), ("2000000000\n", 2_000_000_000), (str(physical * 2), physical)):
        limit.write_text(text)
        assert memory.usable_bytes() == expected


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"memory_size": 32, "max_recommended_working_set_size": 24}, 24),  # Metal
        ({"total_memory": 80, "free_memory": 3}, 80),  # CUDA
    ],
)
def test_usable_memory_of_a_gpu_is_what_its_driver_says(
    info: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: info)
    assert memory.usable_bytes() == expected

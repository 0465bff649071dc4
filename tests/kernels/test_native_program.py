"""The kernels and the pool as a plain C++ program, under AddressSanitizer and ThreadSanitizer."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the native kernels are for Linux on x86-64"
)
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="building needs cmake and a C++ compiler")
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_the_kernels_are_clean_under(sanitizer: str, tmp_path: Path) -> None:
    configure = ["cmake", "-S", NATIVE, "-B", tmp_path, "-DOPTIQ_TESTS=ON", f"-DOPTIQ_SANITIZE={sanitizer}"]
    for command in (configure, ["cmake", "--build", tmp_path, "--parallel", "2"], [tmp_path / "optiq_kernel_tests"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "passed" in done.stdout or "skipped" in done.stdout

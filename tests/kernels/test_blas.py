"""The BLAS that is put before MLX: which one, when, and that it computes what NumPy computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.kernels import blas

ROOT = Path(__file__).resolve().parents[2]
linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or blas._installed("mlx-cuda-13", "mlx-cuda-12") != "",
    reason="only MLX's CPU backend on Linux needs another BLAS",
)

REPORT = """
import json
from dataclasses import asdict
from optiq.kernels.blas import preload
print(json.dumps(asdict(preload())))
"""

PRODUCTS = """
import json
import optiq
import mlx.core as mx
import numpy as np
from optiq.kernels.blas import preload
random = np.random.default_rng(0)
worst = {}
def compare(name, ours, theirs):
    worst[name] = float(np.abs(np.array(ours) - theirs).max() / np.abs(theirs).max())
with mx.stream(mx.cpu):
    for n, k, m in ((1, 64, 48), (33, 129, 65), (512, 256, 384)):
        a = random.standard_normal((n, k)).astype(np.float32)
        b = random.standard_normal((k, m)).astype(np.float32)
        compare(f"f32 {n}", mx.array(a) @ mx.array(b), a @ b)
        compare(f"f32 transposed {n}", mx.array(b).T @ mx.array(a).T, b.T @ a.T)
        compare(f"f64 {n}", mx.array(a, mx.float64) @ mx.array(b, mx.float64), a.astype(np.float64) @ b)
        compare(f"c64 {n}", mx.array(a * 1j) @ mx.array(b + 1j * b), (a * 1j) @ (b + 1j * b))
    square = random.standard_normal((96, 96)).astype(np.float32)
    positive = square @ square.T + 96 * np.eye(96, dtype=np.float32)
    lower = np.linalg.cholesky(positive)
    compare("cholesky", mx.linalg.cholesky(mx.array(positive)), lower)
    compare("inverse", mx.linalg.inv(mx.array(positive)), np.linalg.inv(positive))
    compare("triangular inverse", mx.linalg.tri_inv(mx.array(lower)), np.linalg.inv(lower))
    compare("eigenvalues", mx.linalg.eigvalsh(mx.array(positive)), np.linalg.eigvalsh(positive))
    compare("singular values", mx.linalg.svd(mx.array(square))[1], np.linalg.svd(square)[1])
    q, r = mx.linalg.qr(mx.array(square))
    compare("qr", q @ r, square)
print(json.dumps({"how": preload().how, "worst": worst}))
"""


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    return subprocess.run([sys.executable, "-c", code], env=whole, capture_output=True, text=True, check=False)


def _choice(before: str = "", **environment: str) -> tuple[dict[str, object], str]:
    done = _python(before + REPORT, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_products_and_linear_algebra_equal_numpy() -> None:
    done = _python(PRODUCTS)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {name: error for name, error in report["worst"].items() if error > 2e-5} == {}


@linux_cpu
@pytest.mark.skipif(blas.shim_path() is None, reason="the forwarding library was not built (no C compiler)")
def test_the_wheel_is_taken_where_the_native_part_was_built() -> None:
    choice, warnings = _choice(OPTIQ_THREADS="1")
    assert (choice["name"], choice["how"], choice["threads"]) == ("openblas", "wheel", 1)
    assert warnings == ""


@linux_cpu
def test_it_can_be_switched_off_without_a_warning() -> None:
    choice, warnings = _choice(OPTIQ_BLAS="none")
    assert (choice["name"], choice["reason"], warnings) == ("bundled", "switched off by OPTIQ_BLAS=none", "")


@linux_cpu
def test_too_late_is_said_once_and_not_hidden() -> None:
    choice, warnings = _choice("import mlx.core\nimport optiq\n")
    assert choice["name"] == "bundled"
    assert "import optiq first" in str(choice["reason"])
    assert warnings.count("float32 products will be slow") == 1


@linux_cpu
def test_without_the_native_part_there_is_one_warning_with_the_reason() -> None:
    hidden = "from optiq.kernels import blas\nblas.SHIM_NAME = 'not_built.so'\nblas.SYSTEM_LIBRARIES = ()\n"
    choice, warnings = _choice(hidden + "blas.preload()\n")
    assert choice["name"] == "bundled"
    assert warnings.count("not_built.so was not built (no C compiler at install time)") == 1


@linux_cpu
@pytest.mark.parametrize("value", ["/no/such/library.so", "libc.so.6"])
def test_a_library_that_cannot_serve_is_refused(value: str) -> None:
    done = _python(REPORT, OPTIQ_BLAS=value)
    assert done.returncode == 1
    assert f"InputError: OPTIQ_BLAS={value} cannot be loaded" in done.stderr


def test_importing_optiq_loads_nothing_heavy() -> None:
    done = _python("import sys, optiq; print([m for m in ('mlx', 'ctypes', 'numpy', 'mlx_lm') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_threads_follow_the_environment_and_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_THREADS", "3")
    assert blas.threads() == 3
    monkeypatch.delenv("OPTIQ_THREADS")
    assert blas.threads() >= 1
    for wrong in ("0", "two", "-1", "²", "1025", "9" * 5000):
        monkeypatch.setenv("OPTIQ_THREADS", wrong)
        with pytest.raises(InputError, match=f"OPTIQ_THREADS is '{wrong}', expected a whole number from 1 to 1024"):
            blas.threads()

"""The door to the native kernels: what is chosen, why, and what is said when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from optiq.kernels import native

SHOW = "import optiq; from optiq.kernels import native; c = native.choice(); print(c.name, c.level, c.threads)"


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_reference_is_always_possible() -> None:
    assert _python(SHOW, OPTIQ_KERNELS="reference").stdout.split() == ["reference", "0"]


def test_an_unknown_wish_is_one_line() -> None:
    done = _python(SHOW, OPTIQ_KERNELS="fast")
    assert "OPTIQ_KERNELS is 'fast', expected one of auto, native, reference, avx2" in done.stderr


@pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")
class TestNative:
    def test_it_uses_the_best_level_and_the_threads_it_may(self) -> None:
        module = native.module()
        assert module is not None
        assert _python(SHOW, OPTIQ_KERNELS="auto", OPTIQ_THREADS="2").stdout.split() == ["native", module.levels()[-1], "2"]

    def test_a_level_can_be_asked_for(self) -> None:
        assert _python(SHOW, OPTIQ_KERNELS="avx2", OPTIQ_THREADS="1").stdout.split() == ["native", "avx2", "1"]

    def test_another_mlx_than_the_one_it_was_built_against_is_refused(self) -> None:
        code = "import mlx.core as mx; mx.__version__ = '9.9'; " + SHOW
        wanted = _python(code, OPTIQ_KERNELS="native")
        assert "built against MLX" in wanted.stderr and "9.9 is installed; reinstall optiq" in wanted.stderr
        fallback = _python(code, OPTIQ_KERNELS="auto")
        assert fallback.stdout.split() == ["reference", "0"]
        assert fallback.stderr.count("no native kernels") == 1

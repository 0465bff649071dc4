"""Instruction levels of this processor as a test parameter; kernels are tested at each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from optiq.kernels import native

_module = native.module()
LEVELS = _module.levels() if _module is not None else []
needs_native = pytest.mark.skipif(_module is None, reason="the native kernels were not built here")
each_level = pytest.mark.parametrize("level", LEVELS)


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """Compute with `level` inside; whatever is made there must be evaluated there."""
    assert _module is not None
    before = _module.level()
    _module.set_level(level)
    try:
        yield
    finally:
        _module.set_level(before)

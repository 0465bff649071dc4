"""argmax against numpy, at every instruction level."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import floats
from optiq.kernels.argmax import argmax

pytestmark = pytest.mark.skipif(not floats.levels(), reason="no native kernels here")


@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    width=st.sampled_from([1, 2, 15, 16, 17, 250, 16384, 16385, 40000]),
    dtype=st.sampled_from(floats.TYPES),
    layout=st.sampled_from(floats.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_the_first_of_the_largest(name: str, rows: int, width: int, dtype: mx.Dtype, layout: str, seed: int) -> None:
    x = floats.array(np.random.default_rng(seed).integers(-4, 5, (rows, width)) * 1.0, dtype, layout)  # many are equal
    with floats.level(name):
        found = argmax(x)
        assert found.dtype == mx.uint32
        np.testing.assert_array_equal(np.array(found), floats.wide(x).argmax(-1))


def test_what_is_not_finite() -> None:
    x = mx.array([[float("nan"), 1.0, 3.0, 2.0], [-float("inf")] * 4, [0.0, float("inf"), 1.0, float("nan")]])
    assert argmax(x).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="at least one"):
        mx.eval(argmax(mx.zeros((2, 0))))

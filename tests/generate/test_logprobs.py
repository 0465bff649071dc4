"""Log probabilities against NumPy in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.generate.logprobs import log_probabilities


@pytest.mark.parametrize("tops", [(0, 0, 0), (5, 0, 20)])
def test_log_probabilities(tops: tuple[int, ...]) -> None:
    x = mx.array(3 * np.random.default_rng(0).standard_normal((3, 5000)), mx.bfloat16)
    exact = np.array(x.astype(mx.float32)).astype(np.float64)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    tokens = [4, 900, 4999]
    found = log_probabilities(x, tokens, tops)
    for row, (one, token, top) in enumerate(zip(found, tokens, tops, strict=True)):
        assert one.chosen == pytest.approx(exact[row, token], abs=1e-5)
        assert one.values == pytest.approx(np.sort(exact[row])[::-1][:top], abs=1e-5)
        assert exact[row, one.ids] == pytest.approx(one.values, abs=1e-5) and len(one.ids) == top

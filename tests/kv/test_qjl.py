"""Why the QJL form of TurboQuant is not built: at the same bits it hurts what attention needs.

    mse    b bits of Lloyd-Max codes: x' = the reconstruction
    prod   b - 1 bits of these, and one bit per coordinate of the residual r = x - x':
           <q, x'> + sqrt(pi/2) / d |r| <S q, sign(S r)>,  S Gaussian [d, d]

`prod` has no bias, `mse` shrinks scores; but softmax does not mind a common factor near 1, and exponentiates the noise.

Source: TurboQuant, arXiv 2504.19874, algorithm 2; the observation: docs of turboquant_plus, "turbo4 resurrection".
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.kernels import codebook, packed, rotation
from optiq.kernels.packed import Form

KEYS, QUERIES = 1024, 64


def _mse(x: np.ndarray, bits: int) -> np.ndarray:
    """Vectors [N, D] after TurboQuant's codes."""
    signs = rotation.signs(x.shape[1], 42)[None]
    form = Form(codebook.lloyd(bits), signs, signs, "norm")
    rows = mx.array(x, mx.float32)[None, None]
    return np.array(packed.unpack(packed.pack(rows, form), form))[0, 0].astype(np.float64)


def _prod(q: np.ndarray, x: np.ndarray, bits: int) -> np.ndarray:
    """Scores [Q, N] by the inner-product form."""
    width = x.shape[1]
    sketch = np.random.default_rng(1).standard_normal((width, width))
    coded = _mse(x, bits - 1)
    rest = x - coded
    norms = np.linalg.norm(rest, axis=1)
    return q @ coded.T + np.sqrt(np.pi / 2) / width * norms * ((q @ sketch.T) @ np.sign(rest @ sketch.T).T)


def _kl(exact: np.ndarray, other: np.ndarray) -> float:
    """Mean KL(softmax(exact) || softmax(other)) over queries."""
    logs = [
        s - s.max(1, keepdims=True) - np.log(np.exp(s - s.max(1, keepdims=True)).sum(1, keepdims=True)) for s in (exact, other)
    ]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean())


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_inner_product_form_is_unbiased_and_worse(width: int, bits: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((KEYS, width))
    q = generator.standard_normal((QUERIES, width))
    scale = 2.5 / np.sqrt(width)  # scores with a deviation of 2.5: attention that is neither flat nor a single key
    exact = scale * q @ x.T
    found = {"mse": scale * q @ _mse(x, bits).T, "prod": scale * _prod(q, x, bits)}
    slope = {name: float((exact * s).sum() / (exact * exact).sum()) for name, s in found.items()}
    noise = {name: float(np.var(s - slope[name] * exact)) for name, s in found.items()}
    divergence = {name: _kl(exact, s) for name, s in found.items()}
    assert abs(slope["prod"] - 1) < 0.02 and slope["mse"] < 1 - 0.5 * 4.0**-bits  # what the form promises it keeps
    assert noise["prod"] > 2.5 * noise["mse"], noise
    assert divergence["prod"] > 2 * divergence["mse"], divergence

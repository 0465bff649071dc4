"""Softmax, logsumexp, cross entropy and the embedding lookup against float64, at every instruction level."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import floats
from optiq.kernels import loss
from optiq.kernels.embedding import embedding

pytestmark = pytest.mark.skipif(not floats.levels(), reason="no native kernels here")


def sums(x: np.ndarray) -> np.ndarray:
    most = x.max(-1, keepdims=True)
    return (most + np.log(np.exp(x - most).sum(-1, keepdims=True)))[..., 0]


@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 7, 16, 100, 4095, 4097, 9000]),
    dtype=st.sampled_from(floats.TYPES),
    layout=st.sampled_from(floats.LAYOUTS),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_values_and_derivatives(name: str, rows: int, width: int, dtype: mx.Dtype, layout: str, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = floats.array(rng.standard_normal((2, rows, width)) * spread, dtype, layout)
    targets = rng.integers(0, width, (2, rows))
    x = floats.wide(logits)
    total = sums(x)
    p = np.exp(x - total[..., None])
    g, weight = floats.wide(floats.array(rng.standard_normal(x.shape), dtype)), rng.standard_normal((2, rows)).astype(np.float32)
    hot = np.zeros(x.shape)
    np.put_along_axis(hot, targets[..., None], 1, -1)
    share = np.abs(x).max() * floats.UNIT[mx.float32]  # what one rounding of the largest logit does to an exponential
    with floats.level(name):
        floats.assert_near(loss.logsumexp(logits), total)
        found = loss.cross_entropy(logits, mx.array(targets))
        assert found.dtype == mx.float32
        assert np.abs(floats.wide(found) - (total - (x * hot).sum(-1))).max() <= 4 * max(share, 2**-23 * np.abs(total).max())
        floats.assert_near(loss.softmax(logits), p, 8)
        (found,) = floats.gradients(lambda x: loss.cross_entropy(x, mx.array(targets)), (logits,), weight)
        expected = weight[..., None] * (p - hot)
        room = 4 * (floats.UNIT[dtype] * np.abs(expected) + (2 * share + 2**-22) * np.abs(weight[..., None]) * p)
        assert (np.abs(floats.wide(found) - expected) <= room + 2**-23 + (2**-24 if dtype == mx.float16 else 0)).all()
        (found,) = floats.gradients(loss.logsumexp, (logits,), weight)
        g_lse = floats.wide(mx.array(weight).astype(dtype))[..., None]
        floats.assert_near(found, g_lse * p, 8 + 4 * share / 2**-23 / 4)
        (found,) = floats.gradients(loss.softmax, (logits,), g)
        y = floats.wide(loss.softmax(logits))
        inner = (g * y).sum(-1, keepdims=True)
        bound = 8 * floats.UNIT[dtype] * np.abs(y * (g - inner)) + 2**-18 * y * (np.abs(g * y).sum(-1, keepdims=True) + np.abs(g))
        assert (np.abs(floats.wide(found) - y * (g - inner)) <= bound + 2**-24).all()


@pytest.mark.parametrize("name", floats.levels())
@pytest.mark.parametrize("dtype", floats.TYPES)
@pytest.mark.parametrize("width", [1, 33, 4096, 9001])
def test_divergence(name: str, dtype: mx.Dtype, width: int) -> None:
    rng = np.random.default_rng(width)
    first = floats.array(rng.standard_normal((2, 3, width)) * 3, dtype, "slice")
    second = floats.array(floats.wide(first) + rng.standard_normal(first.shape), dtype)
    x, y = floats.wide(first), floats.wide(second)
    p, q = x - sums(x)[..., None], y - sums(y)[..., None]
    expected = (np.exp(p) * (p - q)).sum(-1)
    with floats.level(name):
        found = loss.divergence(first, second)
        assert found.dtype == mx.float32
        assert np.abs(floats.wide(found) - expected).max() <= 2e-6 * (1 + np.abs(expected).max())
        assert np.abs(floats.wide(loss.divergence_reference(first, second)) - expected).max() <= 1e-5
        assert mx.array_equal(loss.divergence(first, first), mx.zeros((2, 3)))
        assert mx.array_equal(loss.divergence(first[1], second[1]), found[1])


def test_divergence_where_the_reference_has_no_mass() -> None:
    x, y = mx.array([[0.0, -np.inf, 0.0]]), mx.array([[0.0, 5.0, 0.0]])
    expected = np.log(2 + np.exp(5)) - np.log(2)
    for form in (loss.divergence, loss.divergence_reference):
        assert np.isclose(form(x, y).item(), expected, rtol=1e-6)


def test_masked_rows_and_far_values() -> None:
    inf = np.inf
    x = mx.array([[-inf, 0.0, -inf, 1.0], [1e4, -1e4, 0.0, 1e4], [-inf, -inf, -inf, -inf], [inf, 0.0, 0.0, 0.0]])
    assert np.allclose(np.array(loss.softmax(x[:2])), np.array(mx.softmax(x[:2], axis=-1)), atol=1e-7)
    assert np.array_equal(np.array(loss.logsumexp(x)[1:]), np.float32([1e4 + np.log(2), -inf, inf]))
    long = np.full((1, 9000), -inf, np.float32)
    long[0, 8999] = 2.0
    assert loss.logsumexp(mx.array(long)).item() == 2.0
    assert np.isnan(loss.logsumexp(mx.array([[np.nan, 1.0]])).item())


def test_a_target_outside_shows() -> None:
    x = mx.zeros((3, 5))
    found = np.array(loss.cross_entropy(x, mx.array([5, -1, -6])))
    assert np.isnan(found[[0, 2]]).all() and np.isclose(found[1], np.log(5))
    assert np.isnan(np.array(embedding(x, mx.array([3])))).all()


@pytest.mark.parametrize("name", floats.levels())
def test_a_row_does_not_see_the_others(name: str) -> None:
    x = floats.array(np.random.default_rng(2).standard_normal((40, 5001)), mx.bfloat16)
    t = mx.arange(40)
    with floats.level(name):
        softmax, entropy = loss.softmax(x), loss.cross_entropy(x, t)
        for count in (1, 2, 16):
            part = slice(5, 5 + count)
            assert mx.array_equal(loss.softmax(x[part]), softmax[part])
            assert mx.array_equal(loss.cross_entropy(x[part], t[part]), entropy[part])


@pytest.mark.parametrize("name", floats.levels())
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 50), st.sampled_from([1, 16, 33, 256])),
    tokens=st.integers(0, 200),
    dtype=st.sampled_from(floats.TYPES),
    layout=st.sampled_from(["dense", "slice"]),
    seed=st.integers(0, 99),
)
def test_embedding(name: str, sizes: tuple[int, int], tokens: int, dtype: mx.Dtype, layout: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = floats.array(rng.standard_normal(sizes), dtype, layout)
    ids = rng.integers(-sizes[0], sizes[0], (2, tokens))
    g = floats.array(rng.standard_normal((2, tokens, sizes[1])), dtype)
    with floats.level(name):
        assert mx.array_equal(embedding(table, mx.array(ids)), table[mx.array(ids)])
        (found,) = floats.gradients(lambda table: embedding(table, mx.array(ids)), (table,), floats.wide(g))
    expected, size = np.zeros(sizes), np.zeros(sizes)
    np.add.at(expected, ids, floats.wide(g))
    np.add.at(size, ids, np.abs(floats.wide(g)))
    assert (np.abs(floats.wide(found) - expected) <= floats.UNIT[dtype] * np.abs(expected) + 2**-20 * size).all()


def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(5)
    x, t = floats.array(rng.standard_normal((50, 9000))), mx.array(rng.integers(0, 9000, 50))
    found = []
    for count in (1, 3):
        with floats.threads(count):
            found.append([*mx.value_and_grad(lambda x: loss.cross_entropy(x, t).mean())(x), loss.softmax(x)])
            mx.eval(found[-1])
    assert all(mx.array_equal(a, b) for a, b in zip(*found, strict=True))

"""Attention against float64: values and gradients at every instruction level, odd shapes, strided caches, masks; equal bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optiq.kernels import native
from optiq.kernels.attention import FEW_QUERIES, attention, reference

LEVELS = module.levels() if (module := native.module()) is not None else []
# Of the largest value: the type's rounding of the result, and for bfloat16 that of the weights (native/kernels/attention.h).
TOLERANCE = {mx.float32: 4e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
quick_settings = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=LEVELS or ["reference"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    fast = native.module()
    if fast is None:
        yield request.param
        return
    before = fast.level()
    fast.set_level(request.param)
    yield request.param
    fast.set_level(before)


def normal(seed: int, *shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).astype(dtype)


def wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def exact(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any = None, window: int = 0, sinks: mx.array | None = None
) -> np.ndarray:
    """The definition in float64."""
    q, k, v = wide(q), wide(k), wide(v)
    share, length, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = np.repeat(k, share, 1), np.repeat(v, share, 1)
    scores = scale * q @ np.swapaxes(k, 2, 3)
    if isinstance(mask, str):
        position, key = np.arange(keys - length, keys)[:, None], np.arange(keys)
        seen = (key <= position) & ((key > position - window) if window else True)
        scores = np.where(seen, scores, -1e300)
    elif mask is not None:
        scores = np.where(np.array(mask), scores, -1e300) if mask.dtype == mx.bool_ else scores + wide(mask)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(wide(sinks)[:, None, None], (*scores.shape[:3], 1))], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True))[..., :keys] @ v


def assert_close(found: mx.array, expected: np.ndarray, tolerance: float, least_scale: float = 1e-3) -> None:
    assert found.shape == expected.shape
    worst = np.abs(wide(found) - expected).max() / max(least_scale, np.abs(expected).max())
    assert worst <= tolerance, f"off by {worst:.2e}"


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes, type, strides and mask of one call."""
    groups, share = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    keys = draw(st.one_of(st.integers(1, 70), st.integers(200, 600)))
    length = draw(st.one_of(st.integers(1, 20), st.integers(1, 150)))
    return {
        "batch": draw(st.integers(1, 2)),
        "groups": groups,
        "heads": groups * share,
        "length": length,
        "keys": keys,
        "width": draw(st.sampled_from([32, 64, 256, 8, 20, 33, 80])),
        "value_width": draw(st.sampled_from([64, 128, 8, 33, 80])),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "layout": draw(st.sampled_from(["dense", "cache", "transposed", "gaps"])),
        "mask": draw(st.sampled_from(["none", "causal", "window", "boolean", "left padding", "additive", "per head"])),
        "sinks": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def laid_out(x: mx.array, layout: str) -> mx.array:
    """The same values in another order of memory: a slice of a longer buffer, [B, S, G, D] transposed, every second number."""
    if layout == "cache":
        return mx.pad(x, [(0, 0), (0, 0), (0, 7), (0, 0)])[:, :, : x.shape[2]]
    if layout == "transposed":
        return mx.contiguous(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    if layout == "gaps":
        return mx.repeat(x, 2, axis=-1)[..., ::2]
    return x


def made(c: dict[str, Any]) -> tuple[tuple[mx.array, ...], dict[str, Any]]:
    """Arrays and further arguments of a case."""
    rng = np.random.default_rng(c["seed"])
    q = normal(c["seed"], c["batch"], c["heads"], c["length"], c["width"], dtype=c["dtype"])
    k = normal(c["seed"] + 1, c["batch"], c["groups"], c["keys"], c["width"], dtype=c["dtype"])
    v = normal(c["seed"] + 2, c["batch"], c["groups"], c["keys"], c["value_width"], dtype=c["dtype"])
    arguments: dict[str, Any] = {"scale": c["width"] ** -0.5}
    grid = (c["length"], c["keys"])
    if c["mask"] in ("causal", "window"):
        arguments["mask"] = "causal"
        arguments["window"] = 1 + c["seed"] if c["mask"] == "window" else 0
    elif c["mask"] == "boolean":
        seen = rng.random(grid) < 0.3
        seen[0] = False  # a row that sees nothing
        arguments["mask"] = mx.array(seen)
    elif c["mask"] == "left padding":
        arguments["mask"] = mx.array(np.arange(c["keys"]) >= rng.integers(0, c["keys"], (c["batch"], 1, 1, 1)))
    elif c["mask"] == "additive":
        arguments["mask"] = mx.array(rng.standard_normal((c["batch"], 1, *grid)).astype(np.float32)).astype(c["dtype"])
    elif c["mask"] == "per head":
        bias = rng.standard_normal((c["heads"], *grid)).astype(np.float32)
        bias[:, :, 0][rng.random((c["heads"], c["length"])) < 0.3] = -np.inf if c["keys"] > 1 else 0.0
        arguments["mask"] = mx.array(bias)
    if c["sinks"]:
        arguments["sinks"] = normal(c["seed"] + 3, c["heads"])
    return tuple(laid_out(x, c["layout"]) for x in (q, k, v)), arguments


@quick_settings
@given(case=cases())
def test_values_are_those_of_the_definition(level: str, case: dict[str, Any]) -> None:
    arrays, arguments = made(case)
    assert_close(attention(*arrays, **arguments), exact(*arrays, **arguments), TOLERANCE[case["dtype"]])


@settings(quick_settings, max_examples=10)
@given(case=cases())
def test_the_definition_is_what_it_says(case: dict[str, Any]) -> None:
    arrays, arguments = made({**case, "dtype": mx.float32, "length": case["length"] % 9 + 1})
    assert_close(reference(*arrays, **arguments), exact(*arrays, **arguments), 4e-6)


@settings(quick_settings, max_examples=12)
@given(case=cases())
def test_gradients_are_those_of_the_definition(level: str, case: dict[str, Any]) -> None:
    """For q, k, v and the sinks, against the definition's own in float32."""
    arrays, arguments = made({**case, "keys": case["keys"] % 300 + 1})
    sinks = arguments.pop("sinks", None)
    weight = normal(7, *arrays[0].shape[:3], case["value_width"])
    primals = (*arrays, *([] if sinks is None else [sinks]))
    numbers = tuple(range(len(primals)))

    def loss(form: Any, *primals: mx.array) -> mx.array:
        given = {"sinks": primals[3]} if len(primals) > 3 else {}
        return (form(*primals[:3], **arguments, **given).astype(mx.float32) * weight).sum()

    found = mx.grad(lambda *p: loss(attention, *p), argnums=numbers)(*primals)
    plain = tuple(x.astype(mx.float32) for x in primals)
    expected = mx.grad(lambda *p: loss(reference, *p), argnums=numbers)(*plain)
    for ours, theirs in zip(found, expected, strict=True):
        if not np.isnan(wide(theirs)).any():
            # Over one key the differences that the gradient is made of cancel to 0.
            assert_close(ours, wide(theirs), 5 * TOLERANCE[case["dtype"]], least_scale=0.3)


def test_gradients_are_those_of_finite_differences(level: str) -> None:
    q, k, v = normal(0, 1, 4, 21, 20), normal(1, 1, 2, 33, 20), normal(2, 1, 2, 33, 24)
    directions = normal(3, *q.shape), normal(4, *k.shape), normal(5, *v.shape)
    weight = wide(normal(6, 1, 4, 21, 24))
    arguments: dict[str, Any] = {"scale": 0.2, "mask": "causal", "window": 17}
    _, slopes = mx.vjp(lambda *x: attention(*x, **arguments), (q, k, v), (mx.array(weight.astype(np.float32)),))
    for i, direction in enumerate(directions):
        step, ends = 2.0**-6, []
        for sign in (-1, 1):
            moved = [x + sign * step * direction if j == i else x for j, x in enumerate((q, k, v))]
            ends.append((exact(*moved, **arguments) * weight).sum())
        expected = (ends[1] - ends[0]) / (2 * step)
        assert abs((wide(slopes[i]) * wide(direction)).sum() - expected) <= 1e-3 * max(1.0, abs(expected))


def test_rows_that_see_nothing_still_pass_gradients_on(level: str) -> None:
    q, k, v = normal(0, 1, 2, 20, 32), normal(1, 1, 2, 9, 32), normal(2, 1, 2, 9, 16)
    ours = mx.grad(lambda *x: (attention(*x, scale=0.2, mask="causal") ** 2).sum(), argnums=(0, 1, 2))(q, k, v)
    theirs = mx.grad(lambda *x: (reference(*x, scale=0.2, mask="causal") ** 2).sum(), argnums=(0, 1, 2))(q, k, v)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, wide(other), 2e-5)


def test_an_additive_mask_has_a_gradient(level: str) -> None:
    q, k, mask = normal(0, 1, 2, 20, 32), normal(1, 1, 2, 9, 32), normal(2, 20, 9)
    ours = mx.grad(lambda m: (attention(q, k, k, scale=0.2, mask=m) ** 2).sum())(mask)
    theirs = mx.grad(lambda m: (reference(q, k, k, scale=0.2, mask=m) ** 2).sum())(mask)
    assert_close(ours, wide(theirs), 2e-5)


@pytest.mark.parametrize("length", [3, 40])
def test_rows_that_see_nothing_are_as_stock_gives_them(level: str, length: int) -> None:
    q, k, v = normal(0, 1, 4, length, 32), normal(1, 1, 2, 9, 32), normal(2, 1, 2, 9, 64)
    lowest = float(mx.finfo(mx.float32).min)
    masks = (mx.zeros((length, 9), mx.bool_), mx.full((length, 9), -np.inf), mx.full((length, 9), lowest))
    for mask in (*masks, "causal"):
        for sinks in (None, normal(3, 4)):
            expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.2, mask=mask, sinks=sinks)
            found = attention(q, k, v, scale=0.2, mask=mask, sinks=sinks)
            np.testing.assert_allclose(np.array(found), np.array(expected), atol=2e-6)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(8, 2, 256, 256), (3, 3, 64, 64), (4, 1, 40, 24)])
def test_a_row_of_few_has_its_own_bits(level: str, dtype: mx.Dtype, shape: tuple[int, int, int, int]) -> None:
    """Alone with its keys, behind others, with drafts after it, in a batch: the same numbers."""
    heads, groups, width, value_width = shape
    keys = 300
    q = normal(0, 3, heads, FEW_QUERIES, width, dtype=dtype)
    k, v = normal(1, 3, groups, keys, width, dtype=dtype), normal(2, 3, groups, keys, value_width, dtype=dtype)
    whole = attention(q, k, v, scale=0.1, mask="causal")
    for length in (1, 2, 5, 15):
        first = attention(q[:, :, :length], *(x[:, :, : keys - FEW_QUERIES + length] for x in (k, v)), scale=0.1, mask="causal")
        assert mx.array_equal(first, whole[:, :, :length])
        last = attention(q[1:2, :, -length:], k[1:2], v[1:2], scale=0.1, mask="causal")
        assert mx.array_equal(last, whole[1:2, :, -length:])


@pytest.mark.skipif(not LEVELS, reason="the native kernels were not built here")
@pytest.mark.parametrize("length", [1, 200])
def test_threads_do_not_change_the_bits(level: str, length: int) -> None:
    fast = native.module()
    assert fast is not None
    q, k, v = normal(0, 2, 4, length, 64), normal(1, 2, 2, 700, 64), normal(2, 2, 2, 700, 64)
    before, results = fast.threads(), []
    for threads in (1, 3):
        fast.set_threads(threads)
        results.append(attention(q, k, v, scale=0.1, mask="causal"))
        mx.eval(results)
    fast.set_threads(before)
    assert mx.array_equal(*results)


def test_what_does_not_fit_is_refused() -> None:
    q, k = normal(0, 1, 4, 3, 8), normal(1, 1, 2, 5, 8)
    with pytest.raises(ValueError, match="mask is 'sideways', expected 'causal'"):
        attention(q, k, k, scale=1.0, mask="sideways")
    with pytest.raises(ValueError, match="a window of 3 keys needs mask='causal'"):
        attention(q, k, k, scale=1.0, window=3)
    for wrong in (normal(1, 1, 3, 5, 8), normal(1, 1, 2, 5, 9), normal(1, 2, 2, 5, 8)):
        with pytest.raises(ValueError):
            mx.eval(attention(q, wrong, wrong, scale=1.0))
    with pytest.raises(ValueError):
        mx.eval(attention(q, k, k, scale=1.0, mask=mx.zeros((4, 5), mx.bool_)))


def test_mixed_types_promote_as_in_mlx(level: str) -> None:
    q, k = normal(0, 1, 4, 3, 32), normal(1, 1, 2, 40, 32, dtype=mx.bfloat16)
    found = attention(q, k, k, scale=0.2)
    assert found.dtype == mx.float32
    assert_close(found, exact(q, k, k, 0.2), TOLERANCE[mx.float32])

"""The gated delta rule's forms against the recurrence that defines it: values, gradients, and inputs that break naive forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quick
from optiq.kernels import native
from optiq.kernels.gated_delta import chunked, gated_delta, sequential

Inputs = tuple[mx.array, ...]
Form = Callable[..., tuple[mx.array, mx.array]]
LEVELS = () if native.module() is None else tuple(native.module().levels())


@pytest.fixture(params=["chunked", *LEVELS])
def form(request: pytest.FixtureRequest) -> Iterator[Form]:
    """The chunked form in plain operations, then the native one on each instruction level."""
    module = native.module()
    if request.param not in LEVELS:
        yield chunked
        return
    before = module.level()
    module.set_level(request.param)
    yield gated_delta
    module.set_level(before)


def inputs(
    length: int, key_heads: int = 1, value_heads: int = 2, key: int = 8, value: int = 6, least_decay: float = 0.3, seed: int = 0
) -> Inputs:
    """q, k (unit vectors, as the models give them), v, g, beta and an initial state, batch of two."""
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> mx.array:
        x = rng.standard_normal(shape)
        return mx.array((x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32))

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape).astype(np.float32))

    decay = np.exp(rng.uniform(np.log(least_decay), 0.0, (2, length, value_heads)))
    return (
        unit(2, length, key_heads, key),
        unit(2, length, key_heads, key),
        normal(2, length, value_heads, value),
        mx.array(decay.astype(np.float32)),
        mx.array(rng.uniform(0, 1, (2, length, value_heads)).astype(np.float32)),
        normal(2, value_heads, value, key),
    )


def gradients(form: Form, arguments: Inputs) -> list[mx.array]:
    """Gradients for all six inputs of a loss that depends on every output and on the final state.

    The decay's is taken for its logarithm: models compute g = exp(-something), and g times the gradient for g is what flows on.
    """
    rng = np.random.default_rng(9)
    y, state = form(*arguments)
    weights = [mx.array(rng.standard_normal(x.shape).astype(np.float32)) for x in (y, state)]

    def loss(*arguments: mx.array) -> mx.array:
        y, state = form(*arguments)
        return (y * weights[0]).sum() + (state * weights[1]).sum()

    found = list(mx.grad(loss, argnums=tuple(range(6)))(*arguments))
    found[3] = arguments[3] * found[3]
    return found


def assert_same(form: Form, arguments: Inputs, tolerance: float = 2e-5) -> None:
    for found, expected in zip(form(*arguments), sequential(*arguments), strict=True):
        quick.assert_close(found, expected, tolerance)


def assert_same_gradients(form: Form, arguments: Inputs, tolerance: float = 1e-4) -> None:
    for found, expected in zip(gradients(form, arguments), gradients(sequential, arguments), strict=True):
        quick.assert_close(found, expected, tolerance, least_scale=0.01)  # the other inputs' gradients are about 1


def test_the_recurrence_is_the_formula() -> None:
    q, k, v, g, beta, state = (np.array(x, np.float64) for x in inputs(3, key_heads=2))
    S = state[0, 1]
    for t in range(3):
        S = g[0, t, 1] * S
        S = S + beta[0, t, 1] * np.outer(v[0, t, 1] - S @ k[0, t, 1], k[0, t, 1])
    expected = S @ q[0, 2, 1]
    y, last = sequential(*inputs(3, key_heads=2))
    np.testing.assert_allclose(np.array(y)[0, 2, 1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.array(last)[0, 1], S, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 130])
def test_values(form: Form, length: int) -> None:
    assert_same(form, inputs(length))


@pytest.mark.parametrize("length", [1, 7, 70])
def test_gradients_of_all_inputs_and_of_the_initial_state(form: Form, length: int) -> None:
    assert_same_gradients(form, inputs(length))


@pytest.mark.parametrize(("key_heads", "value_heads"), [(1, 1), (2, 2), (2, 4), (1, 3)])
def test_key_heads_are_shared_by_neighbouring_value_heads(form: Form, key_heads: int, value_heads: int) -> None:
    arguments = inputs(40, key_heads, value_heads)
    assert_same(form, arguments)
    q, k, v, g, beta, state = arguments
    last = value_heads - 1
    alone = sequential(
        q[:, :, -1:], k[:, :, -1:], v[:, :, last:], g[..., last:], beta[..., last:], state[:, last:]
    )  # the last value head belongs to the last key head
    quick.assert_close(form(*arguments)[0][:, :, last:], alone[0], 2e-5)


def test_grouped_heads_have_the_right_gradients(form: Form) -> None:
    assert_same_gradients(form, inputs(20, key_heads=2, value_heads=4))


def test_no_state_is_a_state_of_zeros_and_float16_is_computed_in_float32(form: Form) -> None:
    q, k, v, g, beta, state = inputs(10)
    with_zeros = form(q, k, v, g, beta, mx.zeros_like(state))
    quick.assert_close(form(q, k, v, g, beta)[0], with_zeros[0], 0.0)
    half = [x.astype(mx.float16) for x in (q, k, v, g, beta)]
    assert all(x.dtype == mx.float32 for x in form(*half))


def test_a_text_in_two_parts_is_the_text_in_one(form: Form) -> None:
    q, k, v, g, beta, state = inputs(90)
    first, middle = form(*(x[:, :37] for x in (q, k, v, g, beta)), state)
    second, last = form(*(x[:, 37:] for x in (q, k, v, g, beta)), middle)
    y, expected = form(q, k, v, g, beta, state)
    quick.assert_close(mx.concatenate([first, second], axis=1), y, 2e-5)
    quick.assert_close(last, expected, 2e-5)


@pytest.mark.parametrize("decay", [1e-2, 1e-6])
def test_strong_decay_is_finite_and_equal(form: Form, decay: float) -> None:
    q, k, v, g, beta, state = inputs(70)
    arguments = (q, k, v, mx.full(g.shape, decay), beta, state)
    assert_same(form, arguments)
    assert_same_gradients(form, arguments)


def test_a_decay_that_forgets_everything_is_finite_forwards_and_backwards(form: Form) -> None:
    q, k, v, g, beta, state = inputs(70)
    arguments = (q, k, v, mx.where(mx.arange(70)[:, None] % 9 == 4, 0.0, g), beta, state)
    assert_same(form, arguments)
    assert all(np.isfinite(np.array(x)).all() for x in gradients(form, arguments))


def test_identical_keys_with_full_steps_are_finite_and_equal(form: Form) -> None:
    """The system is then all ones below its diagonal: a series in its powers passes 1e17 before it ends."""
    q, k, v, g, beta, state = inputs(130)
    arguments = (q, mx.broadcast_to(k[:, :1], k.shape), v, mx.ones_like(g), mx.ones_like(beta), state)
    assert_same(form, arguments, 1e-4)
    assert_same_gradients(form, arguments, 1e-3)


def test_steps_of_nearly_two_are_finite_and_equal(form: Form) -> None:
    """Some models allow negative eigenvalues: beta up to 2."""
    q, k, v, g, beta, state = inputs(100)
    assert_same(form, (q, mx.broadcast_to(k[:, :1], k.shape), v, mx.ones_like(g), mx.full(beta.shape, 1.9), state), 1e-3)


def test_the_chunk_length_does_not_matter() -> None:
    arguments = inputs(50)
    expected, state = sequential(*arguments)
    for chunk in (1, 2, 16, 32):
        y, last = chunked(*arguments, chunk=chunk)
        quick.assert_close(y, expected, 2e-5)
        quick.assert_close(last, state, 2e-5)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 80),
    key_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    key=st.integers(1, 9),
    value=st.integers(1, 9),
    least_decay=st.sampled_from([1.0, 0.5, 1e-3, 1e-6]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_decay(
    form: Form, length: int, key_heads: int, group: int, key: int, value: int, least_decay: float, seed: int
) -> None:
    assert_same(form, inputs(length, key_heads, key_heads * group, key, value, least_decay, seed), 1e-4)


@pytest.mark.parametrize("length", [1, 5, 70])
def test_inputs_may_be_views_of_any_type(form: Form, length: int) -> None:
    arguments = [x.astype(mx.bfloat16) for x in inputs(length)]
    strided = [mx.repeat(x, 2, axis=-1)[..., ::2] for x in arguments]
    for found, expected in zip(form(*strided), form(*arguments), strict=True):
        assert found.dtype == mx.float32
        quick.assert_close(found, expected, 0.0)
    for found, x in zip(gradients(form, tuple(strided)), arguments, strict=True):
        assert found.dtype == x.dtype and found.shape == x.shape


@pytest.mark.parametrize("form", LEVELS, indirect=True)
def test_a_row_has_the_same_gradients_in_any_company(form: Form) -> None:
    q, k, v, g, beta, state = inputs(70)

    def of(*arguments: mx.array) -> list[mx.array]:
        return mx.grad(lambda *a: sum(x.square().sum() for x in form(*a)), argnums=tuple(range(6)))(*arguments)

    for found, expected in zip(of(q, k, v, g, beta, state), of(*(x[:1] for x in (q, k, v, g, beta, state))), strict=True):
        assert mx.array_equal(found[:1], expected).item()

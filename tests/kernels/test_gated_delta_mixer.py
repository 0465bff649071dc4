"""The fused mixer against the recurrence in float64 numpy: values on every instruction level, bits, masks, memory."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optiq.kernels import native
from optiq.kernels.gated_delta import mixer, mixer_reference

Arrays = dict[str, mx.array]
TYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
# Of the largest value: what the output's type rounds away, and float32 arithmetic over a chunk.
TOLERANCE = {"float32": 4e-6, "bfloat16": 4.1e-3, "float16": 6e-4}
LEVELS = () if native.module() is None else tuple(native.module().levels())


@pytest.fixture(params=["reference", *LEVELS])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The definition, then the native form on each level."""
    module = native.module()
    before = module.level() if module is not None else ""
    if request.param in LEVELS:
        module.set_level(request.param)
    yield request.param
    if module is not None:
        module.set_level(before)


def run(level: str, inputs: Arrays, **options: object) -> tuple[mx.array, mx.array, mx.array]:
    form = mixer_reference if level == "reference" else mixer
    return form(**inputs, **options)  # type: ignore[arg-type]


def make(
    B: int, L: int, Hk: int, Hv: int, Dk: int, Dv: int, K: int = 4, dtype: str = "float32", seed: int = 0
) -> tuple[Arrays, dict[str, object]]:
    rng = np.random.default_rng(seed)
    channels = 2 * Hk * Dk + Hv * Dv

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(TYPES[dtype])

    arrays = {
        "qkv": normal(B, L, channels),
        "z": normal(B, L, Hv * Dv),
        "a": normal(B, L, Hv),
        "b": normal(B, L, Hv),
        "taps": normal(channels, K, 1),
        "a_log": mx.array(np.log(rng.uniform(0.01, 16, Hv)).astype(np.float32)),
        "dt_bias": mx.array((rng.standard_normal(Hv) - 2).astype(np.float32)),
        "norm": mx.array((1 + 0.1 * rng.standard_normal(Dv)).astype(np.float32)),
        "tail": normal(B, K - 1, channels),
        "state": mx.array(rng.standard_normal((B, Hv, Dv, Dk)).astype(np.float32)),
    }
    return arrays, {"key_heads": Hk, "key_dim": Dk, "eps": 1e-6}


def in_float64(x: Arrays, Hk: int, Dk: int, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """y [B, L, Hv Dv] and the last state, one token at a time."""
    v64 = {name: np.array(a.astype(mx.float32), np.float64) for name, a in x.items()}
    B, L, _ = v64["qkv"].shape
    Hv, Dv, K = len(v64["a_log"]), len(v64["norm"]), v64["taps"].shape[1]
    keep = np.ones((B, L), bool) if mask is None else mask
    stream = np.concatenate([v64["tail"], v64["qkv"] * keep[..., None]], axis=1)
    x_t = sum(stream[:, j : j + L] * v64["taps"][:, j, 0] for j in range(K))
    x_t = x_t / (1 + np.exp(-x_t))
    q, k, v = np.split(x_t, [Hk * Dk, 2 * Hk * Dk], axis=-1)
    q, k = (np.repeat(t.reshape(B, L, Hk, Dk), Hv // Hk, axis=2) for t in (q, k))
    q, k = (t / np.sqrt((t * t).sum(-1, keepdims=True) + 1e-6) for t in (q, k))
    v = v.reshape(B, L, Hv, Dv)
    g = np.exp(-np.exp(v64["a_log"]) * np.logaddexp(0, v64["a"] + v64["dt_bias"]))
    beta = 1 / (1 + np.exp(-v64["b"]))
    S, out = v64["state"].copy(), np.zeros((B, L, Hv, Dv))
    for t in range(L):
        live = keep[:, t, None, None, None]
        fresh = S * g[:, t, :, None, None]
        u = beta[:, t, :, None] * (v[:, t] - np.einsum("bhvk,bhk->bhv", fresh, k[:, t]))
        S = np.where(live, fresh + u[..., None] * k[:, t, :, None, :], S)
        out[:, t] = np.einsum("bhvk,bhk->bhv", S, q[:, t]) * Dk**-0.5
    out = out / np.sqrt((out * out).mean(-1, keepdims=True) + 1e-6) * v64["norm"]
    return out.reshape(B, L, -1) * v64["z"] / (1 + np.exp(-v64["z"])), S


def assert_near(found: mx.array, expected: np.ndarray, tolerance: float) -> None:
    found64 = np.array(found.astype(mx.float32), np.float64)
    assert np.abs(found64 - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-3)


def assert_same_bits(found: mx.array, expected: mx.array) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert mx.array_equal(found, expected).item()


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    B=st.integers(1, 3),
    L=st.one_of(st.integers(1, 17), st.integers(18, 150)),
    Hk=st.integers(1, 2),
    group=st.integers(1, 3),
    Dk=st.sampled_from([5, 16, 24, 32, 64, 96, 128]),
    Dv=st.sampled_from([3, 16, 40, 64, 128]),
    K=st.sampled_from([2, 4, 4, 7]),
    dtype=st.sampled_from(sorted(TYPES)),
    seed=st.integers(0, 99),
)
def test_values(level: str, B: int, L: int, Hk: int, group: int, Dk: int, Dv: int, K: int, dtype: str, seed: int) -> None:
    arrays, options = make(B, L, Hk, Hk * group, Dk, Dv, K, dtype, seed)
    y, tail, state = run(level, arrays, **options)
    expected, last = in_float64(arrays, Hk, Dk)
    assert y.dtype == tail.dtype == TYPES[dtype] and state.dtype == mx.float32
    assert_near(y, expected, TOLERANCE[dtype])
    assert_near(state, last, 4e-6)
    assert_same_bits(tail, mx.concatenate([arrays["tail"], arrays["qkv"]], axis=1)[:, -(K - 1) :])


@pytest.mark.parametrize("L", [3, 40])
def test_a_masked_token_is_as_if_it_were_not_there(level: str, L: int) -> None:
    arrays, options = make(3, L, 1, 2, 16, 16)
    mask = np.arange(L) >= np.array([0, 2, L - 1])[:, None]
    mask[0, L // 2] = False
    y, tail, state = run(level, arrays, **options, mask=mx.array(mask))
    expected, last = in_float64(arrays, 1, 16, mask)
    shown = np.where(mask[..., None], np.array(y), 0)
    assert_near(mx.array(shown.astype(np.float32)), np.where(mask[..., None], expected, 0), 4e-6)
    assert_near(state, last, 4e-6)
    assert not np.array(tail)[0, 1].any() if L == 3 else np.array(tail)[0].all()


@pytest.mark.parametrize("L", [2, 30])
def test_the_tail_is_taken_where_each_row_ends(level: str, L: int) -> None:
    arrays, options = make(4, L, 1, 1, 16, 16)
    ends = [0, 1, L, L + 5]
    _, tail, _ = run(level, arrays, **options, ends=mx.array(ends))
    stream = mx.concatenate([arrays["tail"], arrays["qkv"]], axis=1)
    for row, end in enumerate(min(e, L) for e in ends):
        assert_same_bits(tail[row], stream[row, end : end + 3])


@pytest.mark.parametrize("L", [1, 20])
def test_no_state_and_no_tail_are_zeros(level: str, L: int) -> None:
    arrays, options = make(2, L, 1, 2, 16, 16)
    zeros = arrays | {name: mx.zeros_like(arrays[name]) for name in ("tail", "state")}
    bare = {name: x for name, x in arrays.items() if name not in ("tail", "state")}
    for found, expected in zip(run(level, bare, **options), run(level, zeros, **options), strict=True):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("L", [1, 5, 33])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_may_be_views(level: str, L: int, dtype: str) -> None:
    """Slices of one fused projection, transposed and strided arrays give what their copies give."""
    arrays, options = make(2, L, 1, 2, 16, 24, dtype=dtype)
    views = dict(arrays)
    names = ("qkv", "z", "a", "b")
    fused = mx.concatenate([arrays[n] for n in names], axis=-1)
    for name, part in zip(names, mx.split(fused, np.cumsum([arrays[n].shape[-1] for n in names])[:-1].tolist(), -1), strict=True):
        views[name] = part
    views["taps"] = mx.contiguous(arrays["taps"].transpose(1, 2, 0)).transpose(2, 0, 1)
    views["state"] = mx.contiguous(arrays["state"].swapaxes(2, 3)).swapaxes(2, 3)
    views["tail"] = mx.repeat(arrays["tail"], 2, axis=-1)[..., ::2]
    for found, expected in zip(run(level, views, **options), run(level, arrays, **options), strict=True):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("level", LEVELS, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_at_once_and_token_by_token_are_the_same_bits(level: str, dtype: str) -> None:
    arrays, options = make(2, 16, 1, 3, 40, 21, dtype=dtype)
    y, tail, state = run(level, arrays, **options)
    now = dict(arrays)
    outputs = []
    for t in range(16):
        step = now | {name: arrays[name][:, t : t + 1] for name in ("qkv", "z", "a", "b")}
        part, now["tail"], now["state"] = run(level, step, **options)
        outputs.append(part)
    assert_same_bits(mx.concatenate(outputs, axis=1), y)
    assert_same_bits(now["tail"], tail)
    assert_same_bits(now["state"], state)


@pytest.mark.parametrize("level", LEVELS, indirect=True)
@pytest.mark.parametrize("L", [1, 7, 70])
def test_a_row_is_the_same_bits_in_any_company(level: str, L: int) -> None:
    arrays, options = make(5, L, 2, 2, 32, 48, dtype="bfloat16")
    batched = ("qkv", "z", "a", "b", "tail", "state")
    alone = arrays | {name: arrays[name][3:4] for name in batched}
    for found, expected in zip(run(level, arrays, **options), run(level, alone, **options), strict=True):
        assert_same_bits(found[3:4], expected)


@pytest.mark.parametrize("level", LEVELS, indirect=True)
@pytest.mark.parametrize("L", [1, 40])
def test_a_state_that_somebody_holds_is_left_alone(level: str, L: int) -> None:
    arrays, options = make(1, L, 1, 1, 16, 16)
    before = np.array(arrays["state"])
    held = arrays["state"]
    first = run(level, arrays, **options)[2]
    mx.eval(first)
    again = run(level, arrays | {"state": held}, **options)[2]
    assert_same_bits(first, again)
    np.testing.assert_array_equal(np.array(held), before)


@pytest.mark.parametrize("L", [2, 40])
def test_extreme_gates_are_finite_and_equal(level: str, L: int) -> None:
    arrays, options = make(1, L, 1, 2, 16, 16)
    arrays["a"] = mx.where(mx.arange(L)[:, None] % 5 == 1, 1e4, arrays["a"])  # forgets everything
    arrays["b"] = mx.where(mx.arange(L)[:, None] % 3 == 1, -200.0, arrays["b"])
    y, _, state = run(level, arrays, **options)
    with np.errstate(over="ignore"):
        expected, last = in_float64(arrays, 1, 16)
    assert_near(y, expected, 1e-5)
    assert_near(state, last, 1e-5)


@pytest.mark.skipif(not LEVELS, reason="no native kernels here")
def test_wrong_shapes_say_what_is_wrong() -> None:
    arrays, options = make(1, 2, 1, 2, 16, 16)
    for name, wrong, message in (
        ("qkv", arrays["qkv"][..., 1:], "channels"),
        ("z", arrays["z"][:, :1], "z is"),
        ("state", arrays["state"][:, :1], "state is"),
        ("tail", arrays["tail"][:, :1], "tail is"),
        ("taps", arrays["taps"][1:], "taps are"),
        ("dt_bias", arrays["dt_bias"][1:], "dt_bias"),
    ):
        with pytest.raises(ValueError, match=message):
            run("native", arrays | {name: wrong}, **options)


@pytest.mark.parametrize("level", LEVELS, indirect=True)
@pytest.mark.parametrize(("L", "masked"), [(1, False), (9, True), (70, False), (130, True)])
def test_gradients_of_all_inputs(level: str, L: int, masked: bool) -> None:
    arrays, options = make(2, L, 1, 2, 24, 10)
    rng = np.random.default_rng(5)
    if masked:
        options |= {"mask": mx.array(rng.random((2, L)) > 0.3), "ends": mx.array([L // 2, L])}
    names = list(arrays)
    weights = [mx.array(rng.standard_normal(x.shape).astype(np.float32)) for x in mixer(**arrays, **options)]

    def gradients(form: str) -> list[mx.array]:
        def loss(*values: mx.array) -> mx.array:
            outputs = run(form, dict(zip(names, values, strict=True)), **options)
            return sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))

        return mx.grad(loss, argnums=tuple(range(len(names))))(*arrays.values())

    for name, found, expected in zip(names, gradients(level), gradients("reference"), strict=True):
        scale = np.abs(np.array(expected)).max()
        assert np.abs(np.array(found) - np.array(expected)).max() <= 1e-4 * scale, name


@pytest.mark.parametrize("level", LEVELS, indirect=True)
def test_gradients_have_the_types_of_their_inputs(level: str) -> None:
    arrays, options = make(1, 5, 1, 1, 16, 16, dtype="bfloat16")
    names = ("qkv", "taps", "a_log", "state")

    def loss(*values: mx.array) -> mx.array:
        return run(level, arrays | dict(zip(names, values, strict=True)), **options)[0].astype(mx.float32).sum()

    found = mx.grad(loss, argnums=(0, 1, 2, 3))(*(arrays[n] for n in names))
    assert [x.dtype for x in found] == [arrays[n].dtype for n in names]
    assert [x.shape for x in found] == [arrays[n].shape for n in names]

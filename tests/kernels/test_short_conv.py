"""The shifted-products convolution against `nn.Conv1d`: values, gradients, and which convolutions it may stand for."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import quick
from optiq.kernels import native
from optiq.kernels import short_conv as kernels
from optiq.kernels.short_conv import replaceable, short_conv
from optiq.models import layers

LEVELS = () if native.module() is None else tuple(native.module().levels())


@pytest.fixture(params=["reference", *LEVELS], autouse=True)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The definition, then the native form on each instruction level."""
    module = native.module()
    if request.param == "reference":
        monkeypatch.setattr(native, "module", lambda: None)
        yield request.param
        return
    before = module.level()
    module.set_level(request.param)
    yield request.param
    module.set_level(before)


def conv(taps: int = 4, channels: int = 6, bias: bool = False) -> nn.Conv1d:
    mx.random.seed(taps)
    return nn.Conv1d(channels, channels, taps, groups=channels, bias=bias)


@pytest.mark.parametrize("taps", [1, 2, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_values(taps: int, bias: bool) -> None:
    reference = conv(taps, bias=bias)
    if bias:
        reference.bias = mx.arange(6).astype(mx.float32)
    x = mx.random.normal((2, 11 + taps, 6))
    assert replaceable(reference)
    expected = reference(x)
    quick.assert_close(layers.use_kernels(nn.Sequential(reference), layers.PLAIN_FORMS)(x), expected, 1e-6)


def test_as_short_as_the_taps() -> None:
    reference = conv(4)
    x = mx.random.normal((1, 4, 6))
    assert short_conv(x, reference.weight).shape == (1, 1, 6)
    quick.assert_close(short_conv(x, reference.weight), reference(x), 1e-6)


def test_gradients() -> None:
    reference = conv(4)
    x = mx.random.normal((2, 9, 6))
    out = mx.array(np.random.default_rng(0).standard_normal((2, 6, 6)).astype(np.float32))

    def by(form):  # type: ignore[no-untyped-def]
        return mx.grad(lambda x, w: (form(x, w) * out).sum(), argnums=(0, 1))(x, reference.weight)

    for found, expected in zip(by(short_conv), by(lambda x, w: mx.conv1d(x, w, groups=6)), strict=True):
        quick.assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("level", LEVELS, indirect=True)
@pytest.mark.parametrize(("rows", "length", "channels", "taps"), [(1, 1, 1, 4), (3, 5, 70, 4), (2, 9, 129, 3), (2, 1, 17, 8)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("silu", [False, True])
def test_native_values_and_gradients(
    level: str, rows: int, length: int, channels: int, taps: int, dtype: mx.Dtype, silu: bool
) -> None:
    """Odd sizes and all types, against the definition in float32 with the same inputs."""
    rng = np.random.default_rng(taps)
    x, w, out = (
        mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)
        for shape in ((rows, length + taps - 1, channels), (channels, taps, 1), (rows, length, channels))
    )

    def definition(x: mx.array, w: mx.array) -> mx.array:
        y = kernels.reference(x.astype(mx.float32), w.astype(mx.float32))
        return nn.silu(y) if silu else y

    def native_form(x: mx.array, w: mx.array) -> mx.array:
        return native.module().short_conv(x, w, silu)

    def gradients(form):  # type: ignore[no-untyped-def]
        return mx.grad(lambda x, w: (form(x, w).astype(mx.float32) * out).sum(), argnums=(0, 1))(x, w)

    tolerance = {mx.float32: 2e-6, mx.bfloat16: 4e-3, mx.float16: 5e-4}[dtype]
    assert native_form(x, w).dtype == dtype
    quick.assert_close(native_form(x, w).astype(mx.float32), definition(x, w), tolerance)
    for found, expected in zip(gradients(native_form), gradients(definition), strict=True):
        assert found.dtype == dtype
        quick.assert_close(found.astype(mx.float32), expected.astype(mx.float32), 2 * tolerance)


def test_a_form_keeps_the_parameters_and_their_names() -> None:
    for bias in (False, True):
        reference = conv(4, bias=bias)
        names = set(reference.parameters())
        layers.use_kernels(reference, layers.PLAIN_FORMS)
        assert type(reference) is not nn.Conv1d and set(reference.parameters()) == names


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 4),
        nn.Conv1d(4, 4, 4),
        nn.Conv1d(4, 4, 4, groups=2),
        nn.Conv1d(4, 4, 4, groups=4, stride=2),
        nn.Conv1d(4, 4, 4, groups=4, padding=3),
        nn.Conv1d(4, 4, 4, groups=4, dilation=2),
        nn.Conv1d(4, 4, 16, groups=4),
    ],
    ids=["linear", "dense", "grouped", "stride", "padding", "dilation", "long"],
)
def test_other_modules_are_left_alone(module: nn.Module) -> None:
    assert not replaceable(module)

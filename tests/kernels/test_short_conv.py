"""The shifted-products convolution against `nn.Conv1d`: values, gradients, and which convolutions it may stand for."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import quick
from optiq.kernels.short_conv import ShortConv, replaceable, short_conv


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
    quick.assert_close(ShortConv(reference)(x), reference(x), 1e-6)


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


def test_it_keeps_the_parameters_and_their_names() -> None:
    for bias in (False, True):
        reference = conv(4, bias=bias)
        assert set(ShortConv(reference).parameters()) == set(reference.parameters())


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

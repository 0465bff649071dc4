"""Activations and gated products.

    silu(x)         = x sigmoid(x)                    swiglu(a, u)        = silu(a) u
    gelu(x)         = x sigmoid(2 h(x))               geglu(a, u)         = gelu(a) u
    h(x)            = sqrt(2 / pi) (x + 0.044715 x^3) sigmoid_gate(x, a)  = x sigmoid(a)

`gelu` is the tanh form (mlx.nn.gelu_approx). All of any one shape; results in the wider type of the two. The definitions
compute in float32 and round once; mlx-lm's `swiglu` rounds 16-bit values after each step, which loses up to two bits more.
The native forms (native/kernels/gates.h) do the same in one pass and have derivatives.
"""

from __future__ import annotations

import math

import mlx.core as mx

from optiq.kernels import native


def silu(x: mx.array) -> mx.array:
    """x sigmoid(x), in the type of `x`."""
    fast = native.module()
    return silu_reference(x) if fast is None else fast.silu(x)


def silu_reference(x: mx.array) -> mx.array:
    """The definition."""
    wide = x.astype(mx.float32)
    return (wide * mx.sigmoid(wide)).astype(x.dtype)


def gelu(x: mx.array) -> mx.array:
    """GELU in its tanh form, in the type of `x`."""
    fast = native.module()
    return gelu_reference(x) if fast is None else fast.gelu(x)


def gelu_reference(x: mx.array) -> mx.array:
    """The definition."""
    return _gelu(x.astype(mx.float32)).astype(x.dtype)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) up."""
    fast = native.module()
    return swiglu_reference(gate, up) if fast is None else fast.swiglu(gate, up)


def swiglu_reference(gate: mx.array, up: mx.array) -> mx.array:
    """The definition."""
    wide = gate.astype(mx.float32)
    return _narrow(wide * mx.sigmoid(wide) * up.astype(mx.float32), gate, up)


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) up."""
    fast = native.module()
    return geglu_reference(gate, up) if fast is None else fast.geglu(gate, up)


def geglu_reference(gate: mx.array, up: mx.array) -> mx.array:
    """The definition."""
    return _narrow(_gelu(gate.astype(mx.float32)) * up.astype(mx.float32), gate, up)


def sigmoid_gate(x: mx.array, gate: mx.array) -> mx.array:
    """x sigmoid(gate): the output gate of Qwen3.5's attention."""
    fast = native.module()
    return sigmoid_gate_reference(x, gate) if fast is None else fast.sigmoid_gate(x, gate)


def sigmoid_gate_reference(x: mx.array, gate: mx.array) -> mx.array:
    """The definition."""
    return _narrow(x.astype(mx.float32) * mx.sigmoid(gate.astype(mx.float32)), x, gate)


def _gelu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def _narrow(y: mx.array, *inputs: mx.array) -> mx.array:
    return y.astype(mx.result_type(*inputs))

"""The gated delta rule: a chunked form with a stable backward pass, the sequential form that defines it, and the whole mixer.

Gated DeltaNet keeps one matrix state per head and updates it once per token (Yang et al., arXiv 2412.06464):

    S_t = g_t S_{t-1} + beta_t (v_t - g_t S_{t-1} k_t) k_t^T          y_t = S_t q_t

Shapes, with B batch, L tokens, Hk key heads, Hv value heads (a multiple of Hk), Dk and Dv head widths:

    q, k  [B, L, Hk, Dk]      v, y  [B, L, Hv, Dv]      g, beta  [B, L, Hv]      S  [B, Hv, Dv, Dk]

`g` is the decay in linear space, in (0, 1]. All arithmetic is float32. This module knows nothing of models.

`mixer` is what a layer does between its projections, with its convolution, gates and norm; on an x86-64 CPU one native
operation (formulas and memory in native/kernels/delta.h) replaces its definition `mixer_reference`.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import mlx.nn as nn

from optiq.kernels import native, short_conv

CHUNK = 64
NORM_EPS = 1e-6  # added to the squared lengths of keys and queries; mlx-lm models/gated_delta.py, normalize_qk


def sequential(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """The recurrence as it is written above, one token at a time: the definition that `chunked` is tested against.

    Returns:
        y [B, L, Hv, Dv] and the final state [B, Hv, Dv, Dk], both float32.
    """
    q, k, v, g, beta, state = _prepare(q, k, v, g, beta, state)
    outputs = []
    for t in range(q.shape[2]):
        state = state * g[:, :, t, None, None]
        seen = (state * k[:, :, t, None, :]).sum(-1)
        update = (v[:, :, t] - seen) * beta[:, :, t, None]
        state = state + update[..., None] * k[:, :, t, None, :]
        outputs.append((state * q[:, :, t, None, :]).sum(-1))
    return mx.stack(outputs, axis=1), state


def chunked(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    g: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    chunk: int = CHUNK,
) -> tuple[mx.array, mx.array]:
    """The same result from matrix products over chunks of tokens.

    Within a chunk that starts from S_0, with G_t the product of g up to t and Gamma_ts = G_t / G_s:

        (I + A) U = beta (V - G K S_0^T),  A_ts = beta_t Gamma_ts (k_t . k_s) for s < t
        Y = G Q S_0^T + (Gamma * Q K^T for s <= t) U
        S_next = G_C S_0 + U^T (K * G_C / G_s)

    No ratio of decays exceeds 1, and the unit triangular system is inverted by halves, never by powers of A, so that neither
    direction overflows however strong the decay or however alike the keys.

    Args:
        chunk: tokens per chunk; a power of two.

    Returns:
        y [B, L, Hv, Dv] and the final state [B, Hv, Dv, Dk], both float32.

    Source: the WY form of arXiv 2406.06484 with the decays of arXiv 2412.06464.
    """
    q, k, v, g, beta, state = _prepare(q, k, v, g, beta, state)
    B, H, L, Dk = q.shape
    Dv = v.shape[-1]
    chunk = min(chunk, 1 << max(0, (L - 1).bit_length()))
    n = -(-L // chunk)
    if pad := n * chunk - L:
        q, k, v = (mx.pad(x, [(0, 0), (0, 0), (0, pad), (0, 0)]) for x in (q, k, v))
        g = mx.pad(g, [(0, 0), (0, 0), (0, pad)], constant_values=1.0)
        beta = mx.pad(beta, [(0, 0), (0, 0), (0, pad)])
    q, k, v = (x.reshape(B, H, n, chunk, x.shape[-1]) for x in (q, k, v))
    beta = beta.reshape(B, H, n, chunk, 1)
    total = mx.cumsum(mx.log(mx.maximum(g, 1e-30)).reshape(B, H, n, chunk), axis=-1)

    lower = mx.tri(chunk, chunk, 0, dtype=mx.bool_)
    gamma = mx.exp(mx.where(lower, total[..., :, None] - total[..., None, :], -mx.inf))
    strict = mx.tri(chunk, chunk, -1, dtype=mx.float32)
    k_t = k.swapaxes(-1, -2)
    inverse = _unit_lower_inverse()(beta * gamma * (k @ k_t) * strict)
    decay = mx.exp(total)[..., None]
    fresh = inverse @ (beta * v)
    carried = inverse @ (beta * decay * k)
    scores = gamma * (q @ k_t)
    q_in = decay * q
    k_out = mx.exp(total[..., -1:] - total)[..., None] * k
    last = mx.exp(total[..., -1])[..., None, None]

    outputs = []
    for i in range(n):
        state_t = state.swapaxes(-1, -2)
        u = fresh[:, :, i] - carried[:, :, i] @ state_t
        outputs.append(q_in[:, :, i] @ state_t + scores[:, :, i] @ u)
        state = last[:, :, i] * state + u.swapaxes(-1, -2) @ k_out[:, :, i]
    y = mx.stack(outputs, axis=2).reshape(B, H, n * chunk, Dv)[:, :, :L]
    return y.transpose(0, 2, 1, 3), state


def gated_delta(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """The recurrence, by the native form where there is one, else by `chunked`; differentiable in all inputs.

    The native form takes g as at least 1e-30, steps token by token up to 16 tokens, and while a derivative may be asked for keeps
    the state at every 64th token, B Hv Dv Dk float32 each.

    Returns:
        y [B, L, Hv, Dv] and the final state [B, Hv, Dv, Dk], both float32.
    """
    fast = native.module()
    return chunked(q, k, v, g, beta, state) if fast is None else fast.gated_delta(q, k, v, g, beta, state)


def _prepare(q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array | None) -> tuple[mx.array, ...]:
    """Float32, heads before tokens, key heads repeated to the value heads, a zero state where none was given."""
    B, _, Hk, Dk = q.shape
    Hv, Dv = v.shape[-2:]
    q, k, v = (x.astype(mx.float32).transpose(0, 2, 1, 3) for x in (q, k, v))
    g, beta = (x.astype(mx.float32).transpose(0, 2, 1) for x in (g, beta))
    if Hv != Hk:
        q, k = (mx.repeat(x, Hv // Hk, axis=1) for x in (q, k))
    state = mx.zeros((B, Hv, Dv, Dk)) if state is None else state.astype(mx.float32)
    return q, k, v, g, beta, state


@cache
def _unit_lower_inverse():  # type: ignore[no-untyped-def]
    """X -> (I + X)^-1 for strictly lower triangular X [..., C, C], C a power of two, with its exact derivative.

    Built from the diagonal up: [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]].
    """

    @mx.custom_function
    def inverse(x: mx.array) -> mx.array:
        C = x.shape[-1]
        lead = x.shape[:-2]
        blocks = mx.ones((*lead, C, 1, 1))
        size = 1
        while size < C:
            count = C // (2 * size)
            tiles = x.reshape(*lead, count, 2, size, count, 2, size)
            below = mx.stack([tiles[..., i, 1, :, i, 0, :] for i in range(count)], axis=-3)
            top, bottom = blocks[..., 0::2, :, :], blocks[..., 1::2, :, :]
            corner = -(bottom @ below @ top)
            upper = mx.concatenate([top, mx.zeros_like(top)], axis=-1)
            blocks = mx.concatenate([upper, mx.concatenate([corner, bottom], axis=-1)], axis=-2)
            size *= 2
        return blocks[..., 0, :, :]

    @inverse.vjp
    def inverse_vjp(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        transposed = output.swapaxes(-1, -2)
        return -(transposed @ cotangent @ transposed)

    return inverse


def mixer(
    qkv: mx.array,
    z: mx.array,
    a: mx.array,
    b: mx.array,
    *,
    taps: mx.array,
    a_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    key_heads: int,
    key_dim: int,
    eps: float,
    tail: mx.array | None = None,
    state: mx.array | None = None,
    mask: mx.array | None = None,
    ends: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """The mixer of one Gated DeltaNet layer: convolution, gates, delta rule and gated norm, from its projections' outputs.

        q, k, v = silu(conv(tail, qkv))                       causal, one filter of K taps per channel
        q <- q / sqrt(Dk (|q|^2 + 1e-6)),   k <- k / sqrt(|k|^2 + 1e-6)
        g = exp(-exp(a_log) softplus(a + dt_bias)),   beta = sigmoid(b)
        y = norm o / sqrt(mean(o^2) + eps) silu(z)            o from the recurrence above, per value head

    Arithmetic is float32 and rounds once, at the end. A text of up to 16 tokens gives the same bits as its tokens one by one,
    and a row the same bits whatever else is in the batch. The native form's derivative computes its parts once more (convolution,
    delta rule, norm), so that a layer keeps nothing but its inputs.

    Args:
        qkv: [B, L, C], C = 2 Hk Dk + Hv Dv: queries, keys, values.
        z: [B, L, Hv Dv].
        a: [B, L, Hv].
        b: [B, L, Hv].
        taps: [C, K, 1], K <= 8.
        a_log: [Hv].
        dt_bias: [Hv].
        norm: [Dv], the norm's weight.
        key_heads: Hk.
        key_dim: Dk.
        tail: [B, K - 1, C], the inputs before the first token; None: zeros.
        state: [B, Hv, Dv, Dk]; None: zeros. The native form reuses its buffer where nothing else holds it.
        mask: [B, L] bool; a token that is False enters neither the convolution nor the state.
        ends: [B] integer, the tokens of each row after which the new tail is taken, cut to [0, L]; None: L.

    Returns:
        y [B, L, Hv Dv] and the new tail [B, K - 1, C] in the type of `qkv`, and the new state [B, Hv, Dv, Dk] float32.

    Source: mlx-lm models/qwen3_5.py, GatedDeltaNet; it rounds to the model's type after every step.
    """
    fast = native.module()
    if fast is None or taps.shape[1] > short_conv.MOST_TAPS:
        form = mixer_reference
    else:
        form = fast.delta_mixer
    return form(qkv, z, a, b, taps, a_log, dt_bias, norm, key_heads, key_dim, eps, tail, state, mask, ends)


def advance(
    qkv: mx.array,
    a: mx.array,
    b: mx.array,
    counts: int | mx.array,
    *,
    taps: mx.array,
    a_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    key_heads: int,
    key_dim: int,
    eps: float,
    tail: mx.array | None,
    state: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """Tail and state after the first tokens of a text, from what `mixer` got: how a step that only looked is made up for.

    Args:
        qkv, a, b, and by name: as `mixer`.
        counts: how many tokens count, at most L; of all rows, or of each, [B] int32.

    Returns:
        The tail [B, K - 1, C] and the state [B, Hv, Dv, Dk]: the bits that `mixer` leaves after so many tokens.
    """
    mask = None
    if isinstance(counts, int):
        qkv, a, b = qkv[:, :counts], a[:, :counts], b[:, :counts]
        ends = None
    else:
        ends = counts
        mask = mx.arange(qkv.shape[1]) < counts[:, None]
    z = qkv[..., : a_log.size * norm.size]  # gates the output alone, which nobody reads
    options = {"taps": taps, "a_log": a_log, "dt_bias": dt_bias, "norm": norm, "key_heads": key_heads, "key_dim": key_dim}
    _, tail, state = mixer(qkv, z, a, b, **options, eps=eps, tail=tail, state=state, mask=mask, ends=ends)  # type: ignore[arg-type]
    return tail, state


def mixer_reference(
    qkv: mx.array,
    z: mx.array,
    a: mx.array,
    b: mx.array,
    taps: mx.array,
    a_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    key_heads: int,
    key_dim: int,
    eps: float,
    tail: mx.array | None = None,
    state: mx.array | None = None,
    mask: mx.array | None = None,
    ends: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """The definition of `mixer`, in plain operations; differentiable."""
    B, L, C = qkv.shape
    K, Hv, Dv = taps.shape[1], a_log.size, norm.size
    if mask is not None:
        qkv = mx.where(mask[..., None], qkv, 0)
    if tail is None:
        tail = mx.zeros((B, K - 1, C), qkv.dtype)
    x = mx.concatenate([tail.astype(qkv.dtype), qkv], axis=1)
    if ends is None:
        new_tail = x[:, L:]
    else:
        positions = mx.clip(ends, 0, L)[:, None] + mx.arange(K - 1)
        new_tail = mx.take_along_axis(x, positions[..., None], axis=1)
    x = nn.silu(short_conv.reference(x.astype(mx.float32), taps.astype(mx.float32)))
    q, k, v = mx.split(x, [key_heads * key_dim, 2 * key_heads * key_dim], axis=-1)
    q, k = (t.reshape(B, L, key_heads, key_dim) for t in (q, k))
    q, k = (t * mx.rsqrt((t * t).sum(-1, keepdims=True) + NORM_EPS) for t in (q, k))
    a, b, a_log, dt_bias = (t.astype(mx.float32) for t in (a, b, a_log, dt_bias))
    g, beta = mx.exp(-mx.exp(a_log) * nn.softplus(a + dt_bias)), mx.sigmoid(b)
    if mask is not None:
        g, beta = mx.where(mask[..., None], g, 1.0), mx.where(mask[..., None], beta, 0.0)
    o, state = chunked(q * key_dim**-0.5, k, v.reshape(B, L, Hv, Dv), g, beta, state)
    o = o * mx.rsqrt((o * o).mean(-1, keepdims=True) + eps) * norm.astype(mx.float32)
    y = o.reshape(B, L, Hv * Dv) * nn.silu(z.astype(mx.float32))
    return y.astype(qkv.dtype), new_tail, state

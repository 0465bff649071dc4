"""The gated delta rule: a chunked form with a stable backward pass, and the sequential form that defines it.

Gated DeltaNet keeps one matrix state per head and updates it once per token (Yang et al., arXiv 2412.06464):

    S_t = g_t S_{t-1} + beta_t (v_t - g_t S_{t-1} k_t) k_t^T          y_t = S_t q_t

Shapes, with B batch, L tokens, Hk key heads, Hv value heads (a multiple of Hk), Dk and Dv head widths:

    q, k  [B, L, Hk, Dk]      v, y  [B, L, Hv, Dv]      g, beta  [B, L, Hv]      S  [B, Hv, Dv, Dk]

`g` is the decay in linear space, in (0, 1]. All arithmetic is float32. This module knows nothing of models.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx

CHUNK = 64


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

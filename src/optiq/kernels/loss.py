"""Softmax, logsumexp, cross entropy and divergence along the last axis.

    cross_entropy = logsumexp(logits) - logits[target]        its derivative: g (softmax(logits) - [v = target])
    divergence    = sum_v p_v log(p_v / q_v),  p, q the softmax of two arrays of logits;  0 log 0 = 0

The definitions are MLX's operations, cross entropy in float32. The native forms (native/kernels/loss.h) keep no matrix beyond
the logits and, on the way back, their gradient, which is made from the logits and the saved logsumexp in one pass.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native


def softmax(x: mx.array) -> mx.array:
    """Softmax along the last axis, computed in float32, in the type of `x`."""
    fast = native.module()
    return mx.softmax(x, axis=-1, precise=True) if fast is None else fast.softmax(x)


def logsumexp(x: mx.array) -> mx.array:
    """[...] in the type of `x` [..., V], computed in float32."""
    fast = native.module()
    return mx.logsumexp(x.astype(mx.float32), axis=-1).astype(x.dtype) if fast is None else fast.logsumexp(x)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Negative log-likelihood of each target.

    Args:
        logits: [..., V], any float type.
        targets: [...], whole numbers below V.

    Returns:
        [...], float32, nats.
    """
    fast = native.module()
    return cross_entropy_reference(logits, targets) if fast is None else fast.cross_entropy(logits, targets)


def cross_entropy_reference(logits: mx.array, targets: mx.array) -> mx.array:
    """The definition."""
    wide = logits.astype(mx.float32)
    return mx.logsumexp(wide, axis=-1) - mx.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]


def divergence(reference: mx.array, candidate: mx.array) -> mx.array:
    """Kullback-Leibler divergence of a candidate's distributions from the reference's; it has no derivative.

    Args:
        reference: logits [..., V], any float type.
        candidate: likewise.

    Returns:
        [...], float32, nats.
    """
    fast = native.module()
    return divergence_reference(reference, candidate) if fast is None else fast.divergence(reference, candidate)


def divergence_reference(reference: mx.array, candidate: mx.array) -> mx.array:
    """The definition."""
    p, q = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (reference.astype(mx.float32), candidate.astype(mx.float32)))
    share = mx.exp(p)
    return mx.where(share == 0, 0, share * (p - q)).sum(-1)

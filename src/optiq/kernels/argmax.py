"""The place of the largest number along the last axis: greedy decoding over a vocabulary.

The first of equals; where there is no NaN it is `mx.argmax`. The native form passes NaN over and cuts a row into parts for all
threads: 0.6 ms against 0.1 ms for 248,320 logits in bfloat16 on two cores.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native

_TYPES = (mx.float32, mx.float16, mx.bfloat16)


def argmax(x: mx.array) -> mx.array:
    """x [..., N] to uint32 [...]."""
    fast = native.module()
    if fast is None or x.dtype not in _TYPES:
        return mx.argmax(x, axis=-1)
    found: mx.array = fast.argmax(x)
    return found

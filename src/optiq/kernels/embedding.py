"""The embedding lookup, whose derivative adds the rows of the gradient up by their index.

The native form (native/mlx/embedding.cpp) adds in float32 and in the order of the tokens, one thread per row of the table, so
that the gradient has the same bits for any number of threads.
"""

from __future__ import annotations

import mlx.core as mx

from optiq.kernels import native


def embedding(table: mx.array, ids: mx.array) -> mx.array:
    """Rows [..., E] of `table` [V, E] at `ids` [...]."""
    fast = native.module()
    return table[ids] if fast is None else fast.embedding(table, ids)

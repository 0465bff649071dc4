"""Token rows that a model writes itself, for checkpoints that come without a tokenizer.

The rows are drawn from the model's own distribution, token by token. They say less than real text (and the report says that they
were used), but they reach the inputs that the model's weights see when it writes.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from optiq.models.checkpoint import Checkpoint


def self_text(checkpoint: Checkpoint, rows: int, length: int, seed: int) -> np.ndarray:
    """Rows of sampled ids [rows, length] int32, each after the model's first special token; fixed by the seed."""
    from mlx_lm.models.cache import make_prompt_cache

    model = checkpoint.skeleton()
    model.load_weights(list(checkpoint.weights().items()), strict=False)
    start = checkpoint.config.get("bos_token_id") or checkpoint.config.get("eos_token_id") or 0
    token = mx.full((rows, 1), start[0] if isinstance(start, list) else start, dtype=mx.int32)
    cache = make_prompt_cache(model)
    key = mx.random.key(seed)
    columns = [token]
    for _ in range(length - 1):
        key, now = mx.random.split(key)
        token = mx.random.categorical(model(token, cache=cache)[:, -1].astype(mx.float32), key=now)[:, None].astype(mx.int32)
        mx.eval(token)
        columns.append(token)
    return np.array(mx.concatenate(columns, axis=1))

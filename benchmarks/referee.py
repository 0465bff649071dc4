"""An independent measure of divergence: both models loaded by stock mlx-lm, nothing of ours in between.

    KL(p || q) = sum_v p(v) (log p(v) - log q(v))   nats, per token, over the whole vocabulary

Both sides run in float32 with quantized matrices dequantized: what is compared is what the files hold, not the
arithmetic of one machine's quantized kernels. Reference log probabilities are kept on disk, by hash.
In: two model directories and tokens `[N, L]`. Out: per-token KL `[N, L]` and top-1 agreement `[N, L]`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import mlx.core as mx
import numpy as np

ROWS = 20  # documents per forward pass: 20 x 512 x 4096 float32 logits are 168 MB, and more rows cost no more steps


@dataclass(frozen=True)
class Divergence:
    """Per-token divergence in nats `[N, L]` and whether the most probable token agrees `[N, L]`."""

    kl: np.ndarray
    top1: np.ndarray


def dense_float32(model_dir: Path) -> Any:
    """The model as stock mlx-lm loads it, in float32, each quantized matrix replaced by its dense values."""
    from mlx_lm.utils import dequantize_model, load_model

    model, _ = load_model(model_dir)
    model.set_dtype(mx.float32)
    model = dequantize_model(model)
    model.eval()
    mx.eval(model.parameters())
    return model


def log_probabilities(model: Any, ids: np.ndarray) -> Iterator[tuple[slice, mx.array]]:
    """Log probabilities `[rows, L, V]` of the next token, a few documents at a time."""
    for start in range(0, len(ids), ROWS):
        rows = slice(start, min(start + ROWS, len(ids)))
        logits = model(mx.array(ids[rows])).astype(mx.float32)
        yield rows, logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def tokens_digest(ids: np.ndarray) -> str:
    """SHA-256 of token ids, whatever integer type holds them."""
    return hashlib.sha256(np.ascontiguousarray(ids, np.int32).tobytes() + str(ids.shape).encode()).hexdigest()


def reference(model_dir: Path, ids: np.ndarray, work: Path) -> np.ndarray:
    """The reference's log probabilities `[N, L, V]`, memory-mapped from a file made on first use."""
    key = f"{harness.model_digest(model_dir)[:16]}-{tokens_digest(ids)[:16]}"
    path = work / f"reference-{key}.npy"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        part, store = path.with_suffix(".partial"), None
        for rows, values in log_probabilities(dense_float32(model_dir), ids):
            if store is None:
                store = np.lib.format.open_memmap(part, "w+", np.float32, (*ids.shape, values.shape[-1]))
            store[rows] = np.array(values)
        assert store is not None
        store.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def divergence(reference_dir: Path, candidate_dir: Path, ids: np.ndarray, work: Path) -> Divergence:
    """KL(reference || candidate) and top-1 agreement of each token; kept in `work` by the hashes of all inputs.

    Args:
        ids: token ids `[N, L]`, one document per row.
    """
    names = (harness.model_digest(reference_dir), harness.model_digest(candidate_dir), tokens_digest(ids))
    key = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:24]
    path = work / f"kl-{key}.npz"
    if path.exists():
        kept = np.load(path)
        return Divergence(kept["kl"], kept["top1"])
    p_all = reference(reference_dir, ids, work)
    kl, top1 = np.zeros(ids.shape, np.float32), np.zeros(ids.shape, bool)
    for rows, q in log_probabilities(dense_float32(candidate_dir), ids):
        p = mx.array(p_all[rows])
        kl[rows] = np.array((mx.exp(p) * (p - q)).sum(-1))
        top1[rows] = np.array(p.argmax(-1) == q.argmax(-1))
    np.savez_compressed(path, kl=kl, top1=top1)
    return Divergence(kl, top1)

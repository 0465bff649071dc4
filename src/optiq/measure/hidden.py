"""Hidden states on disk: what enters each block, for every row of tokens.

One file per array, written whole and renamed into place, so that a walk that was killed goes on after the last finished block.
Arrays are float32 up to `FLOAT32_BYTES` in all, else bfloat16 (stored as uint16), which halves the disk use at a relative
rounding of 2^-9 in inputs whose second moments are all that is read from them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np

from optiq import files
from optiq.measure.moments import Moments, Sink

FLOAT32_BYTES = 4_000_000_000


class HiddenStore:
    """Arrays [N, L, E] by key in one directory.

    Args:
        path: directory; created when needed.
        total_bytes: expected float32 size of everything that will be put, which decides the stored type.
    """

    def __init__(self, path: Path, total_bytes: int = 0):
        self.path = path
        self._half = total_bytes > FLOAT32_BYTES
        self.bytes = total_bytes // 2 if self._half else total_bytes
        path.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        """True if this array is complete on disk."""
        return self._file(key).exists()

    def put(self, key: str, parts: list[np.ndarray]) -> None:
        """Write one array from its batches [b, L, E]."""
        with files.writing(self._file(key)) as handle:
            np.save(handle, np.concatenate(parts))

    def rows(self, key: str, start: int, stop: int) -> mx.array:
        """Rows [start, stop) as float32."""
        stored = np.load(self._file(key), mmap_mode="r")[start:stop]
        if stored.dtype == np.uint16:
            return mx.array(stored).view(mx.bfloat16).astype(mx.float32)
        return mx.array(stored)

    def width(self, key: str) -> int:
        """The last axis of an array."""
        return int(np.load(self._file(key), mmap_mode="r").shape[-1])

    def pack(self, hidden: mx.array) -> np.ndarray:
        """One batch in the stored type."""
        return np.array(hidden.astype(mx.bfloat16).view(mx.uint16)) if self._half else np.array(hidden)

    def drop(self, key: str) -> None:
        """Remove one array."""
        self._file(key).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def save_sink(self, key: str, sink: Sink) -> None:
        """Write what a sink holds."""
        arrays = {
            f"{name}|{use}|{i}": np.array(a)
            for name, uses in sink.uses.items()
            for use, m in uses.items()
            for i, a in enumerate(m.arrays())
        }
        arrays |= {f"{name}|weights": np.concatenate([np.array(p) for p in parts]) for name, parts in sink.token_weights.items()}
        with files.writing(self.path / f"{key}.npz") as handle:
            np.savez(handle, **arrays)

    def load_sink(self, key: str) -> Sink:
        """Read back what `save_sink` wrote."""
        sink = Sink()
        with np.load(self.path / f"{key}.npz") as arrays:
            for entry in arrays.files:
                name, use, *_ = entry.split("|")
                if use == "weights":
                    sink.token_weights[name] = [mx.array(arrays[entry])]
                elif entry.endswith("|0"):
                    parts = (mx.array(arrays[f"{name}|{use}|{i}"]) for i in range(3))
                    sink.uses.setdefault(name, {})[use] = Moments(*parts)
        return sink

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.npy"

"""Writing safetensors: exact headers, one tensor in memory at a time, whole files or none.

A header is padded with spaces to a size that depends on names and shapes only, so that the size of a file is known
before a single tensor is computed. Format: 8 bytes little-endian header length, JSON header, tensors in the order of
the header.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from optiq import files
from optiq.plan.size import DTYPE_BYTES, safetensors_name

SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its safetensors dtype name and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the values."""
        return DTYPE_BYTES[self.dtype] * prod(self.shape)


def entry(name: str, value: mx.array) -> Entry:
    """What a file would say of this array."""
    return Entry(name, safetensors_name(str(value.dtype)), tuple(value.shape))


def header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Length field and padded JSON."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for e in entries:
        table[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [offset, offset + e.bytes]}
        offset += e.bytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a few arrays that are in memory anyway."""
    stream_safetensors(path, [entry(name, value) for name, value in arrays.items()], arrays.__getitem__, metadata)


def stream_safetensors(
    path: Path, entries: Sequence[Entry], fetch: Callable[[str], mx.array], metadata: Mapping[str, str]
) -> None:
    """Write tensors one after another as `fetch(name)` gives them.

    Raises:
        ResourceError: the disk is full.
    """
    head = header(entries, metadata)
    with files.writing(path, len(head) + sum(e.bytes for e in entries)) as file:
        file.write(head)
        for e in entries:
            value = fetch(e.name)
            for part in _parts(value):
                file.write(part)
            del value


@contextmanager
def writing_rows(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> Iterator[Callable[[str, mx.array], None]]:
    """Write tensors side by side: each `put(name, rows)` adds the next rows of one of them at its own place.

    The file is there when the block has ended and every tensor is whole.

    Raises:
        ResourceError: the disk is full.
    """
    head = header(entries, metadata)
    ends = list(accumulate((e.bytes for e in entries), initial=len(head)))
    at = {e.name: start for e, start in zip(entries, ends, strict=False)}
    with files.writing(path, ends[-1]) as file:
        file.write(head)

        def put(name: str, rows: mx.array) -> None:
            file.seek(at[name])
            for part in _parts(rows):
                file.write(part)
            at[name] = file.tell()

        yield put
        short = [e.name for e, end in zip(entries, ends[1:], strict=True) if at[e.name] != end]
        assert not short, f"{path}: the rows of {', '.join(short)} are not those that its header says"


def shards(entries: Sequence[Entry], limit: int = SHARD_BYTES) -> list[tuple[str, list[Entry]]]:
    """File names as mlx-lm writes them, with the tensors of each."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for e in entries:
        if groups[-1] and size + e.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(e)
        size += e.bytes
    if len(groups) == 1:
        return [("model.safetensors", groups[0])]
    return [(f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups)]


def _parts(value: mx.array, rows_bytes: int = 1 << 26) -> Iterator[memoryview]:
    """The values as bytes, a slice of the first axis at a time."""
    raw = value.view(mx.uint16) if value.dtype in (mx.bfloat16, mx.float16) else value
    if raw.ndim == 0:
        yield memoryview(np.array(raw).reshape(1)).cast("B")
        return
    step = max(1, rows_bytes * raw.shape[0] // max(raw.nbytes, 1))
    for start in range(0, raw.shape[0], step):
        yield memoryview(np.ascontiguousarray(np.array(raw[start : start + step]))).cast("B")

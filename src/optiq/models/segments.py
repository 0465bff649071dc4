"""Several texts side by side in one row, each computed as if it stood alone.

Within `packed`, whatever mixes tokens stays inside a text: attention through the alias package (`optiq.models.arch`), and the
convolution and recurrent state of Qwen3.5's linear layers (`optiq.models.layers`). All else works token by token anyway.
Positions run on across borders, so the model's must be relative, as rotary ones are; `optiq.lora.learner` measures that before
it relies on it. Knows the lengths, no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate

import mlx.core as mx

_borders: ContextVar[tuple[tuple[int, int], ...] | None] = ContextVar("optiq_segments", default=None)


@contextmanager
def packed(lengths: Sequence[int] | None) -> Iterator[None]:
    """Forwards that are built in here read each row as texts of these lengths.

    Args:
        lengths: tokens of each text, in order; None: a row is one text.
    """
    ends = list(accumulate(lengths or ()))
    token = _borders.set(tuple(zip([0, *ends], ends, strict=False)) if lengths else None)
    try:
        yield
    finally:
        _borders.reset(token)


def borders(length: int) -> tuple[tuple[int, int], ...] | None:
    """Where the texts of a row begin and end; None where the row is one.

    Args:
        length: L, the tokens of the row.

    Raises:
        ValueError: the row has another length than all texts together.
    """
    found = _borders.get()
    if found is None or len(found) == 1:
        return None
    if found[-1][1] != length:
        raise ValueError(f"a row of {length} tokens was announced as texts of {found[-1][1]} tokens")
    return found


def cut(x: mx.array, borders: Sequence[tuple[int, int]], axis: int) -> list[mx.array]:
    """The texts of an array, along the axis of tokens; as one operation, whose derivative writes each number once."""
    return mx.split(x, [start for start, _ in borders[1:]], axis=axis)

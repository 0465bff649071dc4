"""The blocks of a model, called through a function: how training computes a block once more instead of keeping what is in it.

Data in: a model and a function by block. Data out: a context for a forward; afterwards the blocks are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.nn as nn

Around = Callable[..., Any]  # (the block's own call, its arguments …) -> its output


class _Around:
    """The form of such a block."""

    def __call__(self: Any, *args: Any, **named: Any) -> Any:
        return self.__dict__["_around"](super().__call__, *args, **named)  # type: ignore[misc]


@contextmanager
def calling(blocks: Sequence[nn.Module], arounds: Sequence[Around]) -> Iterator[None]:
    """Call blocks through functions while the context lasts.

    Args:
        blocks: each once.
        arounds: one per block.
    """
    plain = []
    try:
        for block, around in zip(blocks, arounds, strict=True):
            plain.append((block, type(block)))
            block.__dict__["_around"] = around
            block.__class__ = _around(type(block))
        yield
    finally:
        for block, kind in plain:
            block.__class__ = kind
            del block.__dict__["_around"]


@cache
def _around(kind: type) -> type:
    return type(kind.__name__, (_Around, kind), {"__doc__": _Around.__doc__})

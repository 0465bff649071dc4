"""The blocks of a model, called through a function: how training computes a block once more instead of keeping what is in it.

Data in: a model and a function by block. Data out: a context for a forward; afterwards the blocks are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.nn as nn

from optiq.models.forms import forming

Around = Callable[..., Any]  # (the block's own call, its arguments …) -> its output


class _Around:
    """The form of such a block."""

    def __call__(self: Any, *args: Any, **named: Any) -> Any:
        return self.__dict__["_around"](super().__call__, *args, **named)  # type: ignore[misc]


def calling(blocks: Sequence[nn.Module], arounds: Sequence[Around]) -> AbstractContextManager[None]:
    """Call blocks through functions while the context lasts.

    Args:
        blocks: each once.
        arounds: one per block.
    """
    return forming(zip(blocks, arounds, strict=True), _Around, "_around")

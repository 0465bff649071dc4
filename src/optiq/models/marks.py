"""Places in a forward pass at which it can be paused: the outputs of a model's blocks and of their halves, in order.

MLX computes nothing before it is asked to, so a forward pass over a long prompt can be built at once and evaluated block by
block, with other work in between. Data in: a loaded model. Data out: arrays that the next one builds on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.models.forms import formed
from optiq.models.topology import block_list

_found: ContextVar[list[mx.array] | None] = ContextVar("optiq_marks", default=None)


class _Marked:
    """A module that tells its output to whoever collects marks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        y = super().__call__(*args, **kwargs)  # type: ignore[misc]
        found = _found.get()
        if found is not None:
            first = y[0] if isinstance(y, (tuple, list)) else y
            if isinstance(first, mx.array):
                found.append(first)
        return y


def watch(model: nn.Module) -> None:
    """Let blocks, and the parts of them that have parts (mixer, MLP), tell their outputs. Twice is once.

    Classes outside the model are not touched.
    """
    for block in block_list(model):
        for part in (block, *_with_parts(block)):
            if not isinstance(part, _Marked):
                part.__class__ = formed(type(part), _Marked)


@contextmanager
def marks() -> Iterator[list[mx.array]]:
    """Collects the outputs of what runs inside, for models that are watched."""
    found: list[mx.array] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def _with_parts(block: nn.Module) -> list[nn.Module]:
    """The direct children that are made of modules themselves."""
    return [child for child in block.children().values() if isinstance(child, nn.Module) and child.children()]

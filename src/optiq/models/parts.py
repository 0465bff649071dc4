"""A loaded model in parts: a forward pass that begins at any block, keeps what enters some, and gives logits where wanted.

The model's own forward code does everything; its blocks are wrapped while a `Parts` is open. A model whose blocks do not simply
hand a hidden state on cannot be cut: its passes always begin at the front.
Weights stay as they are loaded; `optiq.models.stream` is for models that are read block by block.

Shapes: ids [B, L] int32, hidden [B, L, E], logits [B, P, V] float32 at P positions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from optiq.models.caches import Caches, key_value_layers
from optiq.models.stream import carries_state, holder, logits_of
from optiq.models.topology import block_list


@dataclass
class _Pass:
    """What one forward pass is to do, and what it has found."""

    start: int = 0
    hidden: mx.array | None = None
    stop: int | None = None
    positions: mx.array | None = None
    keep: Collection[int] = ()
    found: dict[int, mx.array] = field(default_factory=dict)
    calls: list[tuple[Any, list[Any]]] = field(default_factory=list)


class _Place:
    """Stands in a block's place."""

    def __init__(self, owner: Parts, index: int, block: nn.Module):
        self._owner, self._index, self._block = owner, index, block

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        now, index = self._owner.now, self._index
        if now.stop is not None and index >= now.stop:
            now.calls.append((x, [*args, *kwargs.values()]))
            return x
        if index < now.start:
            return now.hidden if index == now.start - 1 else x
        if index == 0 and self._owner.wide:
            x = x.astype(mx.float32)
        if index in now.keep:
            now.found[index] = x
        y = self._block(x, *args, **kwargs)
        return y[:, now.positions] if index == self._owner.depth - 1 and now.positions is not None else y

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class Parts:
    """A model in parts while the context is open; afterwards it is as it was.

    Args:
        model: as loaded.
        wide: blocks compute in float32, so that small changes show; else in the model's own type, which is faster where its
            weights are codes.

    Attributes:
        depth: number of blocks, whose module paths are `names`.
        layers: those with a key/value cache.
        vocabulary: width of the logits, once somebody has asked for it.
    """

    def __init__(self, model: Any, wide: bool = True):
        self.model, self.wide = model, wide
        self.now = _Pass()
        self._blocks = list(block_list(model))
        self._list = holder(model, self._blocks) if self._blocks else None
        self.depth = len(self._blocks)
        self.layers = key_value_layers(model)
        names = {id(module): name for name, module in model.named_modules()}
        self.names = [names.get(id(block), f"layers.{index}") for index, block in enumerate(self._blocks)]
        self.vocabulary: int | None = None

    def __enter__(self) -> Self:
        if self._list is not None:
            self._list[:] = [_Place(self, index, block) for index, block in enumerate(self._blocks)]
            if not self._chained():
                self.__exit__()
                self._list = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._list is not None:
            self._list[:] = self._blocks

    def first(self, index: int) -> int:
        """The block at which a pass can begin that has to run block `index`."""
        return index if self._list is not None else 0

    def logits(
        self,
        ids: mx.array,
        caches: Caches,
        positions: mx.array,
        start: int = 0,
        hidden: mx.array | None = None,
        keep: Collection[int] = (),
    ) -> tuple[mx.array, dict[int, mx.array]]:
        """Logits at some positions, and what entered the blocks `keep`.

        Args:
            ids: [B, L].
            caches: one per layer, as the model takes them.
            positions: [P].
            start: the first block that runs; `first` says what is possible.
            hidden: what enters it; None for start 0.
            keep: blocks.
        """
        whole = self._list is None
        self.now = _Pass(start, hidden, None, None if whole else positions, keep)
        try:
            logits = logits_of(self.model(ids, cache=caches)).astype(mx.float32)
            return (logits[:, positions] if whole else logits), self.now.found
        finally:
            self.now = _Pass()

    def forward(self, ids: mx.array, caches: Caches, stop: int) -> None:
        """Run the blocks before `stop` (all of a model in one piece) for what the caches see of it."""
        last = mx.array([ids.shape[1] - 1])
        self.now = _Pass(stop=stop, positions=None if self._list is None else last)
        try:
            output = logits_of(self.model(ids, cache=caches))
            # The head of a pass that stops early is never evaluated.
            mx.eval(self.now.calls[0][0] if self.now.calls else output[:, -1:])
        finally:
            self.now = _Pass()

    def _chained(self) -> bool:
        """Whether each block gets what the one before it gives, and nothing else that depends on the text."""
        self.now = _Pass(stop=0)
        try:
            self.model(mx.zeros((1, 2), mx.int32))
            calls = self.now.calls
        except (TypeError, ValueError, AttributeError):  # the model unpacks what a block returns
            return False
        finally:
            self.now = _Pass()
        first = calls[0][0]
        plain = isinstance(first, mx.array) and first.ndim == 3
        beside = any(carries_state(value) for _, rest in calls for value in rest)
        return plain and len(calls) == self.depth and all(x is first for x, _ in calls) and not beside

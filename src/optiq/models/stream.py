"""A model walked block by block, so that one block's weights are in memory at a time.

The model's own forward code does everything; this module only cuts it. Each block in the model's `layers` is replaced by a
`_Tap`, so that one call of the model gives the hidden state that enters the first block and the arguments that each block is
called with (`front`), and one more call turns the hidden state after the last block into logits (`tail`). What lies between is
`block`. A model whose blocks do not simply hand a hidden state on (extra outputs, work between blocks) has no blocks here: it is
one piece, its `tail` runs everything. That is decided by looking at the calls, not at names.

Shapes: ids [B, L] int32, hidden [B, L, E], logits [B, L, V], all floating arrays float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.kernels import native
from optiq.models import layers
from optiq.models.checkpoint import Checkpoint
from optiq.models.topology import Tensor, Topology, block_list, topology

Wrap = Callable[[Tensor, nn.Module], Any]


@dataclass(frozen=True)
class _Call:
    """Everything but the hidden state that a block was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def beside_hidden(self) -> list[Any]:
        return [*self.args, *self.kwargs.values()]


class _Tap:
    """Stands in a block's place: records its call and hands the hidden state through, or a given one on."""

    def __init__(self, block: nn.Module):
        self._block = block
        self.given: mx.array | None = None
        self.seen: Any = None
        self.call: _Call | None = None

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen, self.call = x, _Call(args, kwargs)
        return x if self.given is None else self.given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class StandIn:
    """Takes a module's place under `Stream.wrap`; everything that is not overridden is asked of the module."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __getitem__(self, name: str) -> Any:
        return self._module[name]

    def __contains__(self, name: str) -> bool:
        return name in self._module


class Stream:
    """A checkpoint as front, blocks and tail.

    Args:
        checkpoint: where the weights come from.
        whole: do not cut, whatever the architecture.
    """

    def __init__(self, checkpoint: Checkpoint, whole: bool = False):
        self.checkpoint = checkpoint
        self.topology: Topology = topology(checkpoint)
        self.model = checkpoint.skeleton()
        layers.use_kernels(self.model, layers.FORMS if native.module() else layers.PLAIN_FORMS)
        self._blocks = list(block_list(self.model))
        self._taps: list[_Tap] = []
        self._calls: dict[tuple[int, ...], list[_Call]] = {}
        if whole or not self._blocks or not self._cut():
            self._restore()
            self._blocks = []
            tensors = tuple(replace(tensor, block=None) for tensor in self.topology.tensors)
            self.topology = replace(self.topology, tensors=tensors, blocks=())
        self.load_outer()

    @property
    def depth(self) -> int:
        """Number of blocks; 0 for a model in one piece."""
        return len(self._blocks)

    def load_outer(self) -> None:
        """Fresh lazy weights for everything outside the blocks; what was evaluated before is released."""
        prefixes = tuple(path + "." for path in self.topology.blocks)
        outer = {name: value for name, value in self.checkpoint.weights().items() if not name.startswith(prefixes or ("\0",))}
        self._assign(outer)

    def load_block(self, index: int) -> dict[str, mx.array]:
        """Put the weights of one block in place and give them by full name."""
        prefix = self.topology.blocks[index] + "."
        found = {name: value for name, value in self.checkpoint.weights().items() if name.startswith(prefix)}
        self.assign_block(index, found)
        return found

    def assign_block(self, index: int, weights: dict[str, mx.array]) -> None:
        """Put given weights (full names) in place in one block."""
        prefix = self.topology.blocks[index] + "."
        self._blocks[index].load_weights([(name.removeprefix(prefix), value) for name, value in weights.items()], strict=False)

    def assign_outer(self, weights: dict[str, mx.array]) -> None:
        """Put given weights (full names) in place outside the blocks."""
        self._assign(weights)

    def release_block(self, index: int) -> None:
        """Let go of one block's weights."""
        from mlx.utils import tree_map

        block = self._blocks[index]
        block.update(tree_map(lambda _: mx.zeros((0,)), block.parameters()))

    def front(self, ids: mx.array) -> mx.array:
        """Hidden state that enters the first block [B, L, E]; zeros [B, L, 1] for a model in one piece."""
        if not self._blocks:
            return mx.zeros((*ids.shape, 1))
        self._record(ids)
        return self._taps[0].seen

    def block(self, index: int, hidden: mx.array) -> mx.array:
        """One block's output [B, L, E] for its input; its weights must be in place."""
        call = self._calls_for(hidden.shape[:2])[index]
        return self._blocks[index](hidden, *call.args, **call.kwargs)

    def tail(self, hidden: mx.array, ids: mx.array) -> mx.array:
        """Logits [B, L, V] from the last block's output (from the ids alone for a model in one piece)."""
        if not self._blocks:
            return logits_of(self.model(ids)).astype(mx.float32)
        self._taps[-1].given = hidden
        try:
            return logits_of(self.model(ids)).astype(mx.float32)
        finally:
            self._taps[-1].given = None

    def wrap(self, tensors: list[Tensor], wrapper: Wrap) -> Callable[[], None]:
        """Replace the modules of these tensors by `wrapper(tensor, module)`; call the result to put them back."""
        undo: list[tuple[Any, str, Any]] = []
        modules = dict(_named_modules(self.model, self.topology.blocks, self._blocks))
        for tensor in tensors:
            parent_name, _, leaf = tensor.name.rpartition(".")
            parent = modules[parent_name]
            module = parent[int(leaf)] if isinstance(parent, list) else parent[leaf]
            undo.append((parent, leaf, module))
            _put(parent, leaf, wrapper(tensor, module))

        def put_back() -> None:
            for parent, leaf, module in undo:
                _put(parent, leaf, module)

        return put_back

    def weight(self, tensor: Tensor) -> mx.array:
        """The weight of a tensor whose part of the model is loaded, float32, in its own shape."""
        modules = dict(_named_modules(self.model, self.topology.blocks, self._blocks))
        return modules[tensor.name].weight

    def _assign(self, weights: dict[str, mx.array]) -> None:
        self._restore()
        self.model.load_weights(list(weights.items()), strict=False)
        self._tap()

    def _tap(self) -> None:
        if self._taps:
            found = holder(self.model, self._blocks)
            for i, block in enumerate(found):
                for tap in self._taps:
                    if tap._block is block:
                        found[i] = tap

    def _restore(self) -> None:
        for module in [self.model, *(m for _, m in self.model.named_modules())]:
            for value in module.values():
                if isinstance(value, list) and any(isinstance(entry, _Tap) for entry in value):
                    value[:] = [entry._block if isinstance(entry, _Tap) else entry for entry in value]

    def _cut(self) -> bool:
        """Put the taps in place; False if the blocks cannot be cut apart."""
        if holder(self.model, self._blocks) is None:
            return False
        self._taps = [_Tap(block) for block in self._blocks]
        self._tap()
        try:
            self._record(mx.zeros((1, 2), mx.int32))
        except (TypeError, ValueError, AttributeError):  # the model unpacks what a block returns
            self._taps = []
            return False
        first = self._taps[0].seen
        plain = isinstance(first, mx.array) and first.ndim == 3
        chained = all(tap.seen is first for tap in self._taps)
        beside = [value for tap in self._taps if tap.call for value in tap.call.beside_hidden()]
        if not (plain and chained) or any(carries_state(value) for value in beside):
            self._taps = []
            return False
        return True

    def _record(self, ids: mx.array) -> None:
        self.model(ids)
        self._calls[tuple(ids.shape)] = [tap.call for tap in self._taps if tap.call is not None]

    def _calls_for(self, shape: tuple[int, ...]) -> list[_Call]:
        if tuple(shape) not in self._calls:
            self._record(mx.zeros(shape, mx.int32))
        return self._calls[tuple(shape)]


def carries_state(value: Any) -> bool:
    """True for an argument that may depend on the hidden states (a mask or a position does not)."""
    return isinstance(value, mx.array) and value.ndim >= 3 and mx.issubdtype(value.dtype, mx.floating)


def logits_of(output: Any) -> mx.array:
    return output[0] if isinstance(output, tuple) else getattr(output, "logits", output)


def holder(model: nn.Module, blocks: list[nn.Module]) -> list[Any] | None:
    """The list, inside some module, that has the blocks as its entries."""
    for _, module in model.named_modules():
        for value in module.values():
            if isinstance(value, list) and sum(
                any(e is b or getattr(e, "_block", None) is b for b in blocks) for e in value
            ) == len(blocks):
                return value
    return None


def _named_modules(model: nn.Module, paths: tuple[str, ...], blocks: list[nn.Module]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [(name, module) for name, module in model.named_modules()]
    for path, block in zip(paths, blocks, strict=True):
        found += [(f"{path}.{name}" if name else path, module) for name, module in block.named_modules()]
    lists = []
    for name, module in found:
        lists += [(f"{name}.{key}" if name else key, value) for key, value in module.items() if isinstance(value, list)]
    return found + lists


def _put(parent: Any, leaf: str, module: Any) -> None:
    if isinstance(parent, list):
        parent[int(leaf)] = module
    else:
        dict.__setitem__(parent, leaf, module)  # nn.Module is a dict of its members

"""What a model is made of: the tensors that can be quantized, the blocks that hold them, and everything else.

It asks the modules, not their names: an item is a leaf module that can turn itself into a quantized one (`to_quantized`) and that
the family's own predicate does not exclude; the blocks are the list that the model offers as `layers`. Nothing is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from optiq.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Tensor:
    """One quantizable weight.

    Args:
        name: module path, as config.json will name it (for instance ``model.layers.0.mlp.up_proj``).
        kind: ``linear``, ``experts`` (a bank, first axis the expert), ``heads`` (one matrix per head), ``embedding`` or ``head``.
        shape: weight shape; the last axis is the one that groups run along.
        block: index of the block that holds it, or None (embedding, head).
        least_bits: the family's own floor (routers), 0 where there is none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    block: int | None
    least_bits: int = 0


@dataclass(frozen=True)
class Topology:
    """The parts of one model.

    Args:
        tensors: every quantizable weight, in the order of the modules.
        blocks: module paths of the blocks, first to last.
        tied: the output head is the embedding.
    """

    tensors: tuple[Tensor, ...]
    blocks: tuple[str, ...]
    tied: bool

    def of_block(self, index: int | None) -> list[Tensor]:
        """The tensors of one block; of none (embedding, head) for None."""
        return [tensor for tensor in self.tensors if tensor.block == index]


def topology(checkpoint: Checkpoint) -> Topology:
    """Read the parts of a checkpoint from its modules."""
    model = checkpoint.skeleton()
    names = {id(module): name for name, module in model.named_modules()}
    blocks = tuple(names[id(block)] for block in block_list(model))
    predicate = getattr(model, "quant_predicate", None)
    tensors = []
    for name, module in reversed(list(model.named_modules())):
        if not hasattr(module, "to_quantized") or "weight" not in module or module.weight.ndim < 2:
            continue
        verdict: Any = True if predicate is None else predicate(name, module)
        if verdict is False:
            continue
        least = int(verdict.get("bits", 0)) if isinstance(verdict, dict) else 0
        block = next((i for i, path in enumerate(blocks) if name.startswith(path + ".")), None)
        tensors.append(Tensor(name, _kind(module, name, block), tuple(module.weight.shape), block, least))
    order = {name: i for i, name in enumerate(_parameter_order(model))}
    tensors.sort(key=lambda tensor: order[tensor.name])
    tied = not any(tensor.kind == "head" for tensor in tensors)
    return Topology(tuple(tensors), blocks, tied)


def block_list(model: nn.Module) -> Sequence[nn.Module]:
    """The blocks that the model offers as `layers`; empty where it offers none."""
    found = getattr(model, "layers", None)
    if found is None:
        found = getattr(getattr(model, "model", None), "layers", None)
    return [block for block in found if isinstance(block, nn.Module)] if isinstance(found, (list, tuple)) else []


def _parameter_order(model: nn.Module) -> list[str]:
    from mlx.utils import tree_flatten

    leaves = tree_flatten(model.leaf_modules(), is_leaf=lambda m: isinstance(m, nn.Module))
    return [name for name, _ in leaves]


def _kind(module: nn.Module, name: str, block: int | None) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if module.weight.ndim == 3:
        return "heads" if type(module).__name__ == "MultiLinear" else "experts"
    return "head" if block is None and name.rpartition(".")[2] in ("lm_head", "output", "head") else "linear"

"""Which layers of a model get an adapter.

    all               every linear layer and bank of experts in the model's blocks; the head only by its name
    q_proj, v_proj    the layers whose path ends so

Data in: a loaded model, names. Data out: `Target`s by path, in the model's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optiq.errors import InputError
from optiq.models.adapted import expert_layers, linear_layers, weight_shape
from optiq.models.topology import block_list

ALL = "all"


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter.

    Args:
        layer: linear, or a bank of experts; plain or quantized.
        shape: O and I, or E, O and I.
        block: index of the block that holds it; None outside of the blocks.
    """

    layer: Any
    shape: tuple[int, ...]
    block: int | None

    @property
    def width(self) -> int:
        """Parameters of an adapter of rank 1."""
        *experts, outputs, inputs = self.shape
        return (experts[0] if experts else 1) * (outputs + inputs)

    @property
    def bits(self) -> int:
        """Bits of a weight's code; 16 where it has none."""
        return int(self.layer.bits) if "scales" in self.layer else 16


def find(model: Any, names: Sequence[str] = (ALL,), last: int = -1) -> dict[str, Target]:
    """The layers that names ask for.

    Args:
        model: as `optiq.models.load.load` gives it.
        names: ends of paths, or `ALL`.
        last: how many blocks from the end; -1: every one.

    Raises:
        InputError: a name that fits no layer, a number of blocks that cannot be.
    """
    paths = block_paths(model)
    if last != -1 and last < 1:
        raise InputError(f"--num-layers {last}: expected a number of blocks from the end, or -1 for all")
    first = 0 if last == -1 else max(0, len(paths) - last)
    layers = linear_layers(model) | expert_layers(model)
    order = [path for path, _ in reversed(list(model.named_modules())) if path in layers]
    found: dict[str, Target] = {}
    fitted = set()
    for path in order:
        block = next((index for index, start in enumerate(paths) if path.startswith(start + ".")), None)
        fits = {name for name in names if (name == ALL and block is not None) or f".{path}".endswith(f".{name}")}
        fitted |= fits
        if fits and (block is None or block >= first):
            found[path] = Target(layers[path], weight_shape(layers[path]), block)
    for name in names:
        if name not in fitted:
            known = ", ".join(sorted({path.rpartition(".")[2] for path in order}))
            raise InputError(f"--target-modules {name}: no linear layer of this model is called so; there are {known}")
    return found


def block_paths(model: Any) -> list[str]:
    """The paths of the model's blocks, first to last."""
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in block_list(model)]


def parameters(targets: Mapping[str, Target], ranks: Mapping[str, int]) -> int:
    """Parameters of adapters of given ranks, magnitudes of DoRA not counted."""
    return sum(target.width * ranks[path] for path, target in targets.items())

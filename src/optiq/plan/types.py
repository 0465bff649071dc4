"""The words of the plan: an item has options, a choice is one of them, a plan is one choice per item.

Knows nothing of files, models or solvers. Bytes are exact (codes, scales and biases), damage is in nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

UNQUANTIZED_BITS = 16
"""The width that stands for "left in bf16": group size 0, two bytes per weight, no damage."""


@dataclass(frozen=True)
class Option:
    """One way to store a tensor; ``bytes`` counts codes, scales and biases exactly."""

    bits: int
    group_size: int
    bytes: int


@dataclass(frozen=True)
class Item:
    """One tensor to store, with what each option costs (bytes) and breaks (nats per token).

    ``kind`` is one of ``linear``, ``experts``, ``heads``, ``embedding``, ``head``.
    ``damage[i]`` belongs to ``options[i]``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    options: tuple[Option, ...]
    damage: tuple[float, ...]

    @property
    def params(self) -> int:
        """The number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Choice:
    """The option taken for one item."""

    name: str
    bits: int
    group_size: int
    bytes: int
    damage: float


@dataclass(frozen=True)
class Plan:
    """One choice per item, in the order of the items.

    ``bytes`` never exceeds ``budget_bytes``; both count the chosen tensors alone (codes, scales, biases), not
    norms or file headers. ``damage`` is the sum in nats per token. ``gap`` bounds, in the same unit, how far
    ``damage`` can be above the best possible plan: 0 where optimality is proven to the solver's tolerance.
    """

    choices: tuple[Choice, ...]
    budget_bytes: int
    bytes: int
    damage: float
    params: int
    gap: float = 0.0

    @property
    def bpw(self) -> float:
        """Bits per weight over all items, scales and biases included."""
        return 8 * self.bytes / self.params if self.params else 0.0

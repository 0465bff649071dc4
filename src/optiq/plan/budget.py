"""What the user asked for (`--target-bpw`, `--target-gb`, `--like`) as bytes for the quantized tensors.

Knows numbers only. A budget in bits per weight covers codes, scales and biases of the items; a budget in GB or
"like that directory" covers whole `model*.safetensors` files, so norms and headers are taken off first.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from optiq.errors import InputError

KINDS = ("bpw", "gb", "like")
GB = 10**9
DEFAULT_BPW = 5.0
MOST = 1e18  # in any unit; beyond it there are no machines, and sums of bytes leave the range of floats


@dataclass(frozen=True)
class Budget:
    """A request: ``kind`` is ``bpw``, ``gb`` or ``like``; ``value`` is the number typed, or the other's total bytes."""

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown budget kind {self.kind!r}; known: {', '.join(KINDS)}")
        if not 0 < self.value <= MOST:
            raise InputError(f"the budget must be a positive number of at most {MOST:g}, got {self.value}")

    @property
    def total_bytes(self) -> int | None:
        """The ceiling for whole model files, None where the request is in bits per weight."""
        return None if self.kind == "bpw" else int(Fraction(str(self.value)) * (GB if self.kind == "gb" else 1))

    def quantized_bytes(self, params: int, fixed_bytes: int = 0, header_bytes: int = 0) -> int:
        """The ceiling for codes, scales and biases of all items.

        Args:
            params: weights in all items.
            fixed_bytes: tensors that are stored whatever the plan says (norms, convolutions).
            header_bytes: safetensors headers of all shards.

        Raises:
            InputError: the fixed part alone passes the budget.
        """
        total = self.total_bytes
        if total is None:
            return int(Fraction(str(self.value)) * params / 8)  # what was typed: 5.1 means 51/10, not the nearest binary number
        left = total - fixed_bytes - header_bytes
        if left <= 0:
            raise InputError(
                f"the budget of {total} bytes is spent by {fixed_bytes} bytes of unquantized tensors and "
                f"{header_bytes} of headers; ask for more than {fixed_bytes + header_bytes} bytes"
            )
        return left

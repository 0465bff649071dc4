"""The arithmetic of adapters for banks of experts: an A and a B per expert, in an MLP of experts.

    y = W_e x + s B_e A_e x        for each of the experts e that a token is sent to

Such an MLP sorts the tokens of all rows by expert, so inside it a token's row is not known. Rows with an adapter are therefore
computed once more, each for itself, with the banks changed for all of its tokens; alone that is the same computation, and has the
same bits. Rows without one keep what the MLP gave them.

Shapes: x [B, L, I], A [E, R, I], B [E, O, R]; E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from optiq.kernels.dense import gather_mm
from optiq.lora.layers import Part
from optiq.models.adapted import changing, plain_class

Pair = tuple[mx.array, mx.array]  # A, and B with the scale in it


class ExpertBank:
    """The adapters of one MLP of experts.

    Args:
        layer: mlx-lm's `SwitchGLU` or `SwitchMLP`.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._pairs: dict[str, dict[str, Pair]] = {}  # adapter -> projection

    @property
    def names(self) -> list[str]:
        """The adapters that have a part here."""
        return list(self._pairs)

    @property
    def nbytes(self) -> int:
        """What the adapters take in memory."""
        return sum(int(array.nbytes) for pairs in self._pairs.values() for pair in pairs.values() for array in pair)

    def add(self, name: str, part: Part, projection: str) -> None:
        """Put in what an adapter has for one projection."""
        pair = part.a.astype(mx.float32), part.scale * part.b.astype(mx.float32)
        mx.eval(pair)
        self._pairs.setdefault(name, {})[projection] = pair

    def remove(self, name: str) -> None:
        """Take an adapter out."""
        del self._pairs[name]

    def delta(self, names: Sequence[str | None]) -> ExpertDelta | None:
        """As `Bank.delta`."""
        found = {row: self._pairs[name] for row, name in enumerate(names) if name is not None and name in self._pairs}
        return ExpertDelta(found, len(names)) if found else None


class ExpertDelta:
    """The change that the adapters of a batch make to an MLP of experts (`optiq.models.adapted.Change`).

    Args:
        pairs: by row, what its adapter has for each projection.
        batch: B.
    """

    def __init__(self, pairs: dict[int, dict[str, Pair]], batch: int) -> None:
        self.rows = list(pairs)
        self._pairs, self._batch = pairs, batch

    def __call__(self, layer: Any, x: mx.array, y: mx.array, *rest: Any) -> mx.array:
        """See `Change`; `rest` is the experts [B, L, k] that tokens are sent to.

        Raises:
            ValueError: the forward has another batch than it was announced for.
        """
        if x.ndim != 3 or x.shape[0] != self._batch:
            raise ValueError(f"a layer with adapters for {self._batch} rows met an input of shape {x.shape}")
        forward, (indices,) = plain_class(layer).__call__, rest
        found = []
        for row, pairs in self._pairs.items():
            with changing([(layer[name], _AllTokens(pair)) for name, pair in pairs.items()]):
                found.append(forward(layer, x[row : row + 1], indices[row : row + 1]))
        y[mx.array(self.rows)] = mx.concatenate(found)
        return y


class _AllTokens:
    """The change of one bank for tokens that all have the same adapter."""

    rows = (0,)

    def __init__(self, pair: Pair) -> None:
        self._a, self._b = pair

    def __call__(self, layer: Any, x: mx.array, y: mx.array, *rest: Any) -> mx.array:
        """x [..., M, I], the experts of its leading axes, y [..., M, O]."""
        (indices, *_) = rest
        z = gather_mm(gather_mm(x.astype(mx.float32), self._a, indices), self._b, indices)
        return (y.astype(mx.float32) + z).astype(y.dtype)

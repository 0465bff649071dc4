"""The arithmetic of adapters: what those of a batch add to one linear layer, each row its own.

    LoRA    y = W x + c + s B A x
    DoRA    y = g (W x + s B A x) + c,    g = m / |W + s B A|  by output, m the trained magnitudes

Products are in float32 and are added before the one rounding to the type of y. Which kernel multiplies a row, and in what order
it adds up, follows from L alone, so a row has the same bits alone and among others.

Shapes: x [B, L, I], y [B, L, O], A [R, I], B [O, R], c [O]; adapters of one layer lie side by side, A [K, R, I], with zeros where
their ranks differ. Knows no files, no names of modules.

Source: LoRA: Hu et al. 2021, arXiv 2106.09685. DoRA: Liu et al. 2024, arXiv 2402.09353, equation 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from optiq.kernels.dense import dense, gather_mm
from optiq.kernels.fused import FEW_ROWS
from optiq.models.adapted import dense_weight


@dataclass(frozen=True)
class Part:
    """What one adapter has for one layer.

    Args:
        a: [R, I], any float type; [E, R, I] for a bank of experts.
        b: [O, R], any float type; [E, O, R] for a bank of experts.
        scale: s.
        magnitude: [O] for DoRA, else None.
    """

    a: mx.array
    b: mx.array
    scale: float
    magnitude: mx.array | None = None


class Bank:
    """The adapters of one layer, in slots 0 to K - 1.

    Args:
        layer: an `nn.Linear` or `nn.QuantizedLinear`.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.names: list[str] = []
        self.a = self.b = self.gain = mx.zeros((0, 1, 1))

    def add(self, name: str, part: Part) -> None:
        """Put an adapter into the next slot."""
        a, b = part.a.astype(mx.float32)[None], part.scale * part.b.astype(mx.float32)[None]
        gain = mx.zeros((1, b.shape[1]))
        if part.magnitude is not None:
            lengths = mx.linalg.norm(dense_weight(self.layer) + b[0] @ a[0], axis=1)
            gain = (part.magnitude.astype(mx.float32) / lengths - 1)[None]
        rank = max(a.shape[1], self.a.shape[1])
        if self.names:
            a, b = (
                mx.concatenate([_wide(self.a, rank, 1), _wide(a, rank, 1)]),
                mx.concatenate([_wide(self.b, rank, 2), _wide(b, rank, 2)]),
            )
            gain = mx.concatenate([self.gain, gain])
        self.a, self.b, self.gain = a, b, gain
        mx.eval(a, b, gain)
        self.names.append(name)

    def remove(self, name: str) -> None:
        """Take an adapter out; later slots move down."""
        slot = self.names.index(name)
        self.names.remove(name)
        self.a, self.b, self.gain = (mx.concatenate([x[:slot], x[slot + 1 :]]) for x in (self.a, self.b, self.gain))
        mx.eval(self.a, self.b, self.gain)

    @property
    def nbytes(self) -> int:
        """What the adapters take in memory."""
        return int(self.a.nbytes + self.b.nbytes + self.gain.nbytes)

    def delta(self, names: Sequence[str | None]) -> Delta | None:
        """What a batch needs of this layer; None where no row has an adapter with a part here.

        Args:
            names: [B], each row's adapter or None.
        """
        rows = [row for row, name in enumerate(names) if name in self.names]
        return Delta(self, rows, [self.names.index(str(names[row])) for row in rows], len(names)) if rows else None


class Delta:
    """The change that the adapters of a batch make to one layer (`optiq.models.adapted.Change`).

    Args:
        bank: the layer's adapters, as they are now.
        rows: the rows of the batch that have one, in rising order.
        slots: theirs.
        batch: B.
    """

    def __init__(self, bank: Bank, rows: Sequence[int], slots: Sequence[int], batch: int) -> None:
        self.rows = rows
        self._slots, self._batch = slots, batch
        self._a, self._b = bank.a, bank.b
        gain = bank.gain[mx.array(list(slots))]
        self._gain = gain[:, None] if gain.any().item() else None

    def __call__(self, layer: Any, x: mx.array, y: mx.array, *rest: Any) -> mx.array:
        """See `Change`.

        Raises:
            ValueError: the forward has another batch than it was announced for.
        """
        if x.ndim != 3 or x.shape[0] != self._batch:
            raise ValueError(f"a layer with adapters for {self._batch} rows met an input of shape {x.shape}")
        if len(self.rows) == self._batch:
            return self._changed(layer, x, y)
        at = mx.array(list(self.rows))
        y[at] = self._changed(layer, x[at], y[at])
        return y

    def _changed(self, layer: Any, x: mx.array, y: mx.array) -> mx.array:
        z = products(products(x.astype(mx.float32), self._a, self._slots), self._b, self._slots)
        found = y.astype(mx.float32) + z
        if self._gain is not None:  # 0 for the rows with LoRA, whose bits stay
            found = found + self._gain * (found - layer["bias"] if "bias" in layer else found)
        return found.astype(y.dtype)


def products(x: mx.array, w: mx.array, slots: Sequence[int]) -> mx.array:
    """y = x Wᵀ, each row of the batch with its own W.

    Args:
        x: [B, L, I] float32.
        w: [K, O, I] float32.
        slots: [B], from 0 to K - 1.

    Returns:
        [B, L, O] float32.
    """
    count, length, _ = x.shape
    if length > FEW_ROWS:
        return mx.stack([dense(x[row], w[slot]) for row, slot in enumerate(slots)])
    step = FEW_ROWS // length  # more rows in one product would be added up in another order
    pieces = [gather_mm(x[at : at + step], w, mx.array(list(slots[at : at + step]))) for at in range(0, count, step)]
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)


def _wide(x: mx.array, rank: int, axis: int) -> mx.array:
    """A bank of A or B with room for a higher rank."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, rank - x.shape[axis])
    return mx.pad(x, pads)

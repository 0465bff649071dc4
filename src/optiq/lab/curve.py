"""Pareto curves that commands wrote, and what a budget buys on them: a lookup, no solving.

optiq plan --curve -> CURVE.json -> weights; optiq kv-cache -> kv_curve.json -> caches
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq import files
from optiq.errors import FormatError


@dataclass(frozen=True)
class Point:
    """One plan: mean bits of a weight or of a cached value, bytes of a model or of a token, predicted KL in nats per token."""

    bits: float
    bytes: int
    kl: float


@dataclass(frozen=True)
class Curve:
    """Plans of rising size, one at least; ``full_bytes`` is the size in 16 bits, 0 where the file does not say."""

    points: tuple[Point, ...]
    full_bytes: int = 0

    def within(self, bits: float) -> Point:
        """The largest plan within a budget; the smallest of all below it."""
        return self.points[max(0, self._above(bits + 1e-9) - 1)]

    def between(self, bits: float) -> Point:
        """What a budget buys where plans can be mixed: between two of them a mixture of both, outside of them the nearest.

        Size is linear in the bits; of the divergence, the line between two plans of a convex curve is the least possible, and a
        conversion comes near to it as its solver fills the budget.
        """
        place = self._above(bits)
        if place in (0, len(self.points)):
            return self.points[min(place, len(self.points) - 1)]
        low, high = self.points[place - 1], self.points[place]
        share = (bits - low.bits) / (high.bits - low.bits)
        return Point(bits, round(low.bytes + share * (high.bytes - low.bytes)), low.kl + share * (high.kl - low.kl))

    def _above(self, bits: float) -> int:
        """The place of the first plan beyond a budget."""
        return bisect_right([point.bits for point in self.points], bits)


def of_weights(path: Path) -> Curve:
    """The curve of `optiq plan --curve`; bytes are of the model's files where the table knows them.

    Raises:
        FormatError: it is unreadable, of another schema, or has no points.
    """
    return _read(
        path, lambda row: Point(float(row["bpw"]), int(row.get("total_files", row["bytes"])), float(row["predicted_kl"]))
    )


def of_caches(path: Path) -> Curve:
    """The curve of `optiq kv-cache`; bytes are of one token of context.

    Raises:
        FormatError: it is unreadable, of another schema, or has no points.
    """
    return _read(path, lambda row: Point(float(row["bits"]), int(row["bytes_per_token"]), float(row["predicted_kl"])))


def _read(path: Path, point: Callable[[Mapping[str, Any]], Point]) -> Curve:
    data = files.read_json(path, what="curve")
    try:
        points = sorted(map(point, data["points"]), key=lambda point: point.bits)
        full_bytes = int(data.get("full_bytes_per_token", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the curve {path} lacks or garbles a field: {error!r}; measure again") from None
    if not points:
        raise FormatError(f"the curve {path} has no points; measure again")
    return Curve(tuple(points), full_bytes)

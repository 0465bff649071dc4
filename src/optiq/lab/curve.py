"""The Pareto curve that `optiq plan --curve` wrote, and what a budget buys on it: a lookup, no solving."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from optiq import files
from optiq.errors import FormatError


@dataclass(frozen=True)
class Point:
    """One plan: its size in bytes (model files where the table knows them), bits per weight, predicted KL in nats per token."""

    bpw: float
    bytes: int
    kl: float


@dataclass(frozen=True)
class Curve:
    """Plans of rising size."""

    points: tuple[Point, ...]

    def at(self, bpw: float) -> Point:
        """What a budget in bits per weight buys: between two plans of the curve a mixture of both, outside of it the nearest.

        Size is linear in the bits; of the divergence, the line between two plans of a convex curve is the least possible, and a
        conversion comes near to it as its solver fills the budget.
        """
        place = bisect_right([point.bpw for point in self.points], bpw)
        if place in (0, len(self.points)):
            return self.points[min(place, len(self.points) - 1)]
        low, high = self.points[place - 1], self.points[place]
        share = (bpw - low.bpw) / (high.bpw - low.bpw)
        return Point(bpw, round(low.bytes + share * (high.bytes - low.bytes)), low.kl + share * (high.kl - low.kl))


def load(path: Path) -> Curve:
    """Read the file.

    Raises:
        FormatError: it is unreadable, of another schema, or has no points.
    """
    data = files.read_json(path, what="curve", schema=1)
    try:
        points = [
            Point(float(row["bpw"]), int(row.get("total_files", row["bytes"])), float(row["predicted_kl"]))
            for row in data["points"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"the curve {path} lacks or garbles a field: {error!r}; make it again with optiq plan --curve"
        ) from None
    if not points:
        raise FormatError(f"the curve {path} has no points; make it again with optiq plan --curve")
    return Curve(tuple(sorted(points, key=lambda point: point.bpw)))

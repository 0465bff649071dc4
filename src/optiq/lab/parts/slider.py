"""A slider whose moves are answered while it is dragged."""

from __future__ import annotations

from collections.abc import Callable

from nicegui.element import Element

THROTTLE_S = 0.03


class Slider(Element, component="slider.js"):
    """A number between two ends.

    Args:
        label: what a screen reader says of it.
        moved: called with the new number, the last one of a drag included.
    """

    def __init__(self, low: float, high: float, step: float, start: float, label: str, moved: Callable[[float], None]) -> None:
        super().__init__()
        self.props["low"], self.props["high"], self.props["step"], self.props["start"] = low, high, step, start
        self.props["aria-label"] = label
        self.on("moved", lambda event: moved(min(max(float(event.args), low), high)), throttle=THROTTLE_S)

"""Pictures: options for ECharts, drawn as SVG whose colours are the page's own, so that light and dark need no second picture.

Data are never HTML (tooltips are drawn as text). The UI library's own element is not used: it runs options whose keys begin with
a colon, and fails where it is removed before it has drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nicegui.elements.echart.echart  # noqa: F401  has ECharts as a module of the browser
from nicegui.element import Element

from optiq.lab.text import line

INK, SOFT, GRID, MAIN, SECOND = "var(--ink)", "var(--ink-soft)", "var(--edge)", "var(--main)", "var(--second)"
WIDE_GRID = {"left": 84, "right": 24, "top": 32, "bottom": 52}  # for the long numbers of a logarithmic axis
LEGEND = {"top": 0, "itemGap": 28, "textStyle": {"color": SOFT}}
# Light to dark with the width, as in the pictures of `optiq inspect`.
BIT_COLOURS = {2: "#f6e8a6", 3: "#a7d8a0", 4: "#5bbfa8", 5: "#2f9dc4", 6: "#3a78c2", 8: "#3b4fa3", 16: "#6b6f78", 32: "#44474d"}
# By name, as a width is measured by name: "inherit" measures as another font, and a legend's parts lie on each other.
FONT = "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"


def _text(colour: str = SOFT) -> dict[str, Any]:
    return {"color": colour, "fontFamily": FONT, "fontSize": 12}


def axis(name: str, kind: str = "value", **more: Any) -> dict[str, Any]:
    """One axis; ``kind`` is value, log or category."""
    return {
        "type": kind,
        "name": name,
        "nameLocation": "middle",
        "nameGap": 32,
        "nameTextStyle": _text(),
        "axisLabel": {**_text(), "hideOverlap": True},
        "axisLine": {"lineStyle": {"color": GRID}},
        "axisTick": {"lineStyle": {"color": GRID}},
        "splitLine": {"lineStyle": {"color": GRID}, "show": kind != "category"},
        "scale": True,
        **more,
    }


def options(x: Mapping[str, Any], y: Mapping[str, Any], series: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """A whole picture of two axes."""
    return {
        "animation": False,
        "textStyle": _text(),
        "grid": {"left": 64, "right": 24, "top": 32, "bottom": 52},
        "tooltip": {"renderMode": "richText", "confine": True, "trigger": "item"},
        "xAxis": dict(x),
        "yAxis": dict(y),
        "series": [dict(one) for one in series],
        **more,
    }


def line_series(points: Sequence[tuple[float, float]], name: str = "", colour: str = MAIN, dots: bool = False) -> dict[str, Any]:
    """A line through points."""
    return {
        "type": "line",
        "name": line(name, 60),
        "data": [list(point) for point in points],
        "showSymbol": dots,
        "lineStyle": {"color": colour, "width": 2},
        "itemStyle": {"color": colour},
    }


def mark_series(points: Sequence[tuple[float, float, str]], colour: str = SECOND, big: int = 12) -> dict[str, Any]:
    """Points with names."""
    return {
        "type": "scatter",
        "data": [{"value": [x, y], "name": line(name, 60)} for x, y, name in points],
        "symbolSize": big,
        "itemStyle": {"color": colour},
        "z": 5,
    }


class Chart(Element, component="chart.js"):
    """A picture.

    Args:
        content: options for ECharts.
        label: what a screen reader says of it.
        tall: for pictures of many rows.
    """

    def __init__(self, content: Mapping[str, Any], label: str, tall: bool = False) -> None:
        super().__init__()
        self.classes("chart tall" if tall else "chart").props('role="img"')
        self.props["aria-label"], self.props["options"] = line(label), dict(content)

    def draw(self, content: Mapping[str, Any]) -> None:
        """Other content in the same place."""
        self.props["options"] = dict(content)
        self.update()

    def merge(self, part: Mapping[str, Any]) -> None:
        """Some options anew; series are found by their id."""
        self.run_method("merge", dict(part))


def heatmap(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[tuple[int, int, float, str]], **more: Any
) -> dict[str, Any]:
    """Coloured cells: (column, row, value, what a tooltip says); ``more`` holds the visualMap that colours them."""
    data = [{"value": [x, y, value], "name": line(name, 120)} for x, y, value, name in cells]
    return options(
        axis("layer", "category", data=list(columns), splitArea={"show": False}, nameGap=28),
        axis("", "category", data=[line(row, 40) for row in rows], inverse=True, splitArea={"show": False}),
        [{"type": "heatmap", "data": data, "itemStyle": {"borderColor": "var(--paper)", "borderWidth": 1}}],
        grid={"left": 148, "right": 16, "top": 12, "bottom": 92},
        tooltip={"renderMode": "richText", "confine": True, "formatter": "{b}"},
        **more,
    )


def bits_map(widths: Iterable[int]) -> dict[str, Any]:
    """The visualMap of a heatmap of these widths."""
    return {
        "type": "piecewise",
        "dimension": 2,
        "orient": "horizontal",
        "left": "center",
        "bottom": 0,
        "textStyle": _text(),
        "itemWidth": 14,
        "pieces": [
            {"value": bits, "color": BIT_COLOURS.get(bits, SOFT), "label": f"{bits} bits"} for bits in sorted(set(widths))
        ],
    }


def scale_map(low: float, high: float, text: tuple[str, str]) -> dict[str, Any]:
    """The visualMap of a heatmap of numbers, pale to dark; ``text`` names its upper and lower end."""
    return {
        "type": "continuous",
        "dimension": 2,
        "min": low,
        "max": max(high, low + 1e-9),
        "orient": "horizontal",
        "left": "center",
        "bottom": 0,
        "calculable": False,
        "text": list(text),
        "textStyle": _text(),
        "inRange": {"color": ["#e8f1f8", "#8ec4de", "#3a8fc0", "#b6538f", "#7a1f4f"]},
    }

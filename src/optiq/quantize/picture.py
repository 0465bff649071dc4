"""Pictures of plans and results: bits over depth, bytes per kind, the Pareto curve, divergence over bytes.

Takes plain numbers, knows no files of ours but the one it writes. matplotlib is imported when a picture is asked for
and draws without a display; the file's ending (`.png`, `.svg`, `.pdf`) says the format, same input gives same SVG.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq import files
from optiq.errors import InputError, ResourceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
BIT_COLOURS = {
    2: "#fee8a5", 3: "#bfe3b4", 4: "#7fcdbb", 5: "#41b0c4", 6: "#2b83ba", 8: "#2a4b9b", 16: "#4d4d57", 32: "#26262b",
}  # fmt: skip
"""One colour per width, light to dark; 16 and 32 (not quantized) are grey."""

SERIES_COLOURS = ("#2a4b9b", "#d1603d", "#8a8d91", "#2f9e77", "#b8860b", "#7b4fa3", "#5c7c8a")
SERIES_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_INK, _FAINT = "#26262b", "#d9dadd"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": "#8a8d91", "axes.labelcolor": _INK,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK, "figure.dpi": 150,
    "savefig.facecolor": "white", "legend.frameon": False, "svg.hashsalt": "optiq", "svg.fonttype": "path",
}  # fmt: skip
_LABELLED_LAYERS = 48
_LABEL_PLACES = (
    (7, 4, "left"),
    (7, -9, "left"),
    (-7, 4, "right"),
    (-7, -9, "right"),
    (7, 12, "left"),
    (-7, -18, "right"),
)


@dataclass(frozen=True)
class Point:
    """One measured model: ``kl`` in nats per token with its 95 % interval; points of one ``series`` share a colour."""

    label: str
    bytes: int
    kl: float
    ci_lo: float | None
    ci_hi: float | None
    series: str


@dataclass(frozen=True)
class Panel:
    """One drawing of several beside each other: points (x, y) by the name of their series."""

    label: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def check_format(path: str | os.PathLike[str]) -> None:
    """Refuse an ending that cannot be drawn, before any work.

    Raises:
        InputError: another ending than `.png`, `.svg`, `.pdf`.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"cannot draw {path}: its ending is {suffix or 'missing'}, expected one of {', '.join(FORMATS)}")


def inspection(
    path: str | os.PathLike[str],
    depth: Mapping[str, Mapping[int | None, int]],
    kinds: Iterable[tuple[str, int, int]],
    title: str,
) -> None:
    """Draw bits over depth above bytes per kind.

    Args:
        path: the picture to write.
        depth: role → layer → bits; a layer of None stands for a tensor outside the layers.
        kinds: (kind, bits, bytes) of each group of tensors.
        title: above the picture.

    Raises:
        InputError: an ending that cannot be drawn.
        ResourceError: matplotlib is not installed.
    """
    check_format(path)
    rows = list(kinds)
    columns, names = _columns(depth), len({kind for kind, _, _ in rows})
    high, low = 0.26 * max(len(depth), 1) + 0.5, 0.3 * max(names, 1) + 0.5
    with _drawing() as plt:
        figure, axes = plt.subplots(
            2, 1, figsize=(min(3.2 + 0.3 * max(columns, 12), 16), high + low + 1.5), height_ratios=(high, low),
            layout="constrained",
        )  # fmt: skip
        _draw_depth(axes[0], depth, title)
        _draw_kinds(axes[1], rows)
        _save(figure, path)


def bits_over_depth(path: str | os.PathLike[str], depth: Mapping[str, Mapping[int | None, int]], title: str) -> None:
    """Draw the heat strip alone; arguments and errors as for `inspection`."""
    check_format(path)
    with _drawing() as plt:
        size = (min(3.2 + 0.3 * max(_columns(depth), 12), 16), 0.26 * max(len(depth), 1) + 1.5)
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        _draw_depth(axes, depth, title)
        _save(figure, path)


def pareto(
    path: str | os.PathLike[str],
    curve: Sequence[tuple[float, float]],
    title: str,
    marks: Sequence[tuple[str, float, float]] = (),
) -> None:
    """Draw predicted divergence over bits per weight, logarithmic in the divergence.

    Args:
        path: the picture to write.
        curve: (bits per weight, nats per token), rising in the first.
        title: above the picture.
        marks: (label, bits per weight, nats per token) of single plans to point out.

    Raises:
        InputError: an ending that cannot be drawn.
        ResourceError: matplotlib is not installed.
    """
    check_format(path)
    with _drawing() as plt:
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        positive = [(bpw, nats) for bpw, nats in curve if nats > 0]
        axes.plot(*zip(*positive, strict=True) if positive else ([], []), color=SERIES_COLOURS[0], linewidth=1.8)
        for label, bpw, nats in marks:
            if nats > 0:
                axes.plot([bpw], [nats], "o", color=SERIES_COLOURS[1], markersize=6, zorder=3)
                axes.annotate(label, (bpw, nats), textcoords="offset points", xytext=(7, 7), color=SERIES_COLOURS[1])
        axes.set(title=title, xlabel="bits per weight (codes, scales and biases)", ylabel="predicted KL, nats per token")
        axes.set_yscale("log")
        _grid(axes)
        _save(figure, path)


def kl_over_bytes(path: str | os.PathLike[str], points: Sequence[Point], title: str, join: Sequence[str] = ()) -> None:
    """Draw measured divergence (logarithmic) over bytes, with 95 % intervals.

    Args:
        path: the picture to write.
        points: the models; joined series take the first colours, the others follow in order of appearance.
        title: above the picture.
        join: series whose points are joined by a line.

    Raises:
        InputError: an ending that cannot be drawn, or no point above zero.
        ResourceError: matplotlib is not installed.
    """
    check_format(path)
    shown = [point for point in points if point.kl > 0]
    if not shown:
        raise InputError(f"cannot draw {path}: none of {len(points)} points has a divergence above 0")
    with _drawing() as plt:
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        unit, scale = _unit(max(point.bytes for point in shown))
        series = sorted(dict.fromkeys(point.series for point in shown), key=lambda name: name not in join)
        for number, name in enumerate(series):
            _draw_series(axes, [point for point in shown if point.series == name], number, scale, name in join)
        axes.set(title=title, xlabel=f"model size, {unit}", ylabel="KL to the bf16 model, nats per token (95 % interval)")
        axes.set_yscale("log")
        axes.margins(x=0.09, y=0.08)
        _grid(axes)
        axes.legend(loc="upper right")
        _place_labels(axes, shown, series, scale)
        _save(figure, path)


def panels(path: str | os.PathLike[str], parts: Sequence[Panel], title: str, label: str) -> None:
    """Draw panels over one logarithmic axis of lengths, each with a logarithmic axis of its own; colours follow the names.

    Args:
        path: the picture to write.
        parts: the panels, left to right.
        title: above the picture.
        label: of the axis of lengths.

    Raises:
        InputError: an ending that cannot be drawn.
        ResourceError: matplotlib is not installed.
    """
    check_format(path)
    names = list(dict.fromkeys(name for part in parts for name in part.series))
    with _drawing() as plt:
        figure, all_axes = plt.subplots(1, len(parts), figsize=(4.2 * len(parts), 4.2), layout="constrained", squeeze=False)
        from matplotlib.ticker import LogLocator

        for axes, part in zip(all_axes[0], parts, strict=True):
            for name, points in part.series.items():
                number = names.index(name)
                marker = SERIES_MARKERS[number % len(SERIES_MARKERS)]
                axes.plot(*zip(*points, strict=True), color=_series_colour(number), marker=marker, markersize=4, linewidth=1.4)
            ticks = sorted({x for points in part.series.values() for x, _ in points})
            axes.set(xscale="log", yscale="log", xlabel=label, ylabel=part.label)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # powers of ten alone may lie outside of a panel
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xticks(ticks, [f"{x / 1024:g}k" for x in ticks], rotation=45)
            axes.minorticks_off()
            _grid(axes)
        handles = [
            plt.Line2D([], [], color=_series_colour(n), marker=SERIES_MARKERS[n % len(SERIES_MARKERS)], markersize=4, label=name)
            for n, name in enumerate(names)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        _save(figure, path)


def _draw_series(axes: Axes, points: list[Point], number: int, scale: float, joined: bool) -> None:
    points = sorted(points, key=lambda point: point.bytes)
    colour, marker = _series_colour(number), SERIES_MARKERS[number % len(SERIES_MARKERS)]
    sizes, values = [point.bytes / scale for point in points], [point.kl for point in points]
    below = [max(p.kl - p.ci_lo, 0.0) if p.ci_lo is not None else 0.0 for p in points]
    above = [max(p.ci_hi - p.kl, 0.0) if p.ci_hi is not None else 0.0 for p in points]
    axes.errorbar(
        sizes, values, yerr=[below, above], color=colour, marker=marker, markersize=6, linewidth=1.6 if joined else 0,
        elinewidth=1.1, capsize=2.5, label=points[0].series, zorder=3 if joined else 2,
    )  # fmt: skip


def _place_labels(axes: Axes, points: Sequence[Point], series: Sequence[str], scale: float) -> None:
    """Put each label where it covers neither a point nor another label, or where it covers least."""
    canvas: Any = axes.figure.canvas
    canvas.draw()
    frame, legend = axes.get_window_extent(), axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    spots = [axes.transData.transform((point.bytes / scale, point.kl)) for point in points]
    for point in points:
        if not point.label:
            continue
        at, colour = (point.bytes / scale, point.kl), _series_colour(series.index(point.series))
        tries = []
        for x, y, side in _LABEL_PLACES:
            text = axes.annotate(point.label, at, textcoords="offset points", xytext=(x, y), ha=side, fontsize=7.5, color=colour)
            box = text.get_window_extent()
            faults = sum(box.overlaps(other) for other in taken) + sum(box.contains(*spot) for spot in spots)
            tries.append((faults + 10 * (box.x0 < frame.x0 or box.x1 > frame.x1), text, box))
        best = min(tries, key=lambda attempt: attempt[0])
        for attempt in tries:
            if attempt is not best:
                attempt[1].remove()
        taken.append(best[2])


def _series_colour(number: int) -> str:
    return SERIES_COLOURS[number % len(SERIES_COLOURS)]


def _draw_depth(axes: Axes, depth: Mapping[str, Mapping[int | None, int]], title: str) -> None:
    from matplotlib.patches import Patch, Rectangle

    columns = _columns(depth)
    for y, layers in enumerate(depth.values()):
        for layer, bits in layers.items():
            x, width = (0, columns) if layer is None else (layer, 1)
            axes.add_patch(Rectangle((x, y), width, 1, facecolor=_colour(bits), edgecolor="white", linewidth=1.2))
            if columns <= _LABELLED_LAYERS:
                axes.text(x + width / 2, y + 0.52, str(bits), ha="center", va="center", fontsize=7, color=_on(bits))
    axes.set_xlim(0, columns)
    axes.set_ylim(max(len(depth), 1), 0)
    axes.set_yticks([y + 0.5 for y in range(len(depth))], list(depth))
    every = max(1, -(-columns // 24))
    axes.set_xticks([x + 0.5 for x in range(0, columns, every)], [str(x) for x in range(0, columns, every)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#f6f6f7")
    axes.set(title=title, xlabel="layer")
    used = sorted({bits for layers in depth.values() for bits in layers.values()})
    patches = [Patch(color=_colour(bits), label=f"{bits} bits") for bits in used]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _draw_kinds(axes: Axes, rows: Sequence[tuple[str, int, int]]) -> None:
    kinds = list(dict.fromkeys(kind for kind, _, _ in rows))
    totals = {kind: sum(size for other, _, size in rows if other == kind) for kind in kinds}
    unit, scale = _unit(max(totals.values(), default=1))
    for y, kind in enumerate(kinds):
        left = 0.0
        for bits in sorted({bits for other, bits, _ in rows if other == kind}):
            size = sum(n for other, width, n in rows if (other, width) == (kind, bits)) / scale
            axes.barh(y, size, left=left, height=0.72, color=_colour(bits), edgecolor="white", linewidth=0.8)
            left += size
        axes.text(left, y, f"  {files.size_text(totals[kind])}", va="center", fontsize=8)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_xlim(0, 1.14 * max(totals.values(), default=1) / scale)
    axes.tick_params(axis="y", length=0)
    axes.set_title("bytes per kind", fontsize=9)
    axes.set_xlabel(unit)


def _columns(depth: Mapping[str, Mapping[int | None, int]]) -> int:
    return max((layer + 1 for layers in depth.values() for layer in layers if layer is not None), default=1)


def _colour(bits: int) -> str:
    return BIT_COLOURS.get(bits, "#8a8d91")


def _on(bits: int) -> str:
    """The colour of text on the colour of ``bits``."""
    return "white" if bits >= 6 else _INK


def _unit(largest: float) -> tuple[str, float]:
    return next(((name, scale) for name, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if largest >= scale), ("bytes", 1.0))


def _grid(axes: Axes) -> None:
    axes.grid(True, which="major", color=_FAINT, linewidth=0.7)
    axes.grid(True, which="minor", color=_FAINT, linewidth=0.3)
    axes.set_axisbelow(True)


@contextmanager
def _drawing() -> Iterator[Any]:
    """matplotlib in our style and without a display, for the length of a block; figures are closed after it."""
    try:
        import matplotlib
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ResourceError(f"pictures need matplotlib ({error}); install it with: pip install matplotlib") from None
    plt.switch_backend("Agg")
    style: Any = _STYLE
    with matplotlib.rc_context(style):
        try:
            yield plt
        finally:
            plt.close("all")


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    suffix = Path(path).suffix.lower()
    buffer = io.BytesIO()
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}[suffix]
    figure.savefig(buffer, format=suffix[1:], metadata=dated)
    files.write_bytes(path, buffer.getvalue())

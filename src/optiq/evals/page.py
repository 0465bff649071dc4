"""The report as one HTML file: the table, and pictures drawn as SVG inside it. Nothing is loaded from anywhere.

Pictures: the capability score over bytes with intervals; divergence by domain; flips by task. A picture whose figures were not
measured is left out.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from optiq.evals.report import Report, markdown, rows
from optiq.files import size_text

COLOURS = ("#2a4b9b", "#d1603d", "#2f9e77", "#b8860b", "#7b4fa3", "#5c7c8a")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 300, 60, 40
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#26262b;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.25rem .7rem;border-bottom:1px solid #d9dadd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{display:block;max-width:100%;height:auto;margin:1rem 0}"
    "pre{white-space:pre-wrap;color:#5a5b61;font-size:13px}"
)


def page(report: Report, title: str) -> str:
    """The whole file."""
    head, lines = rows(report)
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    notes = markdown(report).split("\n\n", 1)[1]
    pictures = "".join([_scores(report), _domains(report), _flips(report)])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{html.escape(title)}</h1><table><tr>{heads}</tr>{cells}</table>{pictures}"
        f"<pre>{html.escape(notes)}</pre></body></html>\n"
    )


def _scores(report: Report) -> str:
    """Capability over bytes, with its interval."""
    shown = [model for model in report.models if model.bytes]
    if not shown:
        return ""
    widest = 1.15 * max(model.bytes or 0 for model in shown)
    most = math.ceil(10 * max(model.capability.high for model in shown)) / 10
    parts = [_axes("capability score over size", [0.0, most / 2, most], most, "{:.0%}")]
    for number, model in enumerate(shown):
        score, colour = model.capability, COLOURS[number % len(COLOURS)]
        x = LEFT + (WIDTH - LEFT - 20) * (model.bytes or 0) / widest
        low, at, high = (_y(value, most) for value in (score.low, score.value, score.high))
        label = html.escape(f"{model.label}, {size_text(model.bytes or 0)}")
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x:.1f}" cy="{at:.1f}" r="5" fill="{colour}"/>'
            f'<text x="{x - 8:.1f}" y="{at - 8 - 14 * number:.1f}" text-anchor="end" fill="{colour}">{label}</text>'
        )
    return _svg(parts)


def _domains(report: Report) -> str:
    """KL by domain as groups of bars."""
    measured = [model for model in report.models if model.fidelity]
    if not measured:
        return ""
    values = [[float(v) for v in (m.fidelity or {})["kl"]["by_domain"].values()] for m in measured]
    names = list((measured[0].fidelity or {})["kl"]["by_domain"])
    return _bars("KL to the true model by domain, nats per token", names, values, [model.label for model in measured], "{:.3g}")


def _flips(report: Report) -> str:
    """Samples gained and lost by task, for the first candidate."""
    if not report.candidates:
        return ""
    pairs = {name: pair for name, pair in report.paired(report.candidates[0]).items() if name != "capability"}
    counts = [[float(len(pair.gained)) for pair in pairs.values()], [float(len(pair.lost)) for pair in pairs.values()]]
    title = f"flips of {report.candidates[0].label} against the baseline, samples"
    return _bars(title, list(pairs), counts, ["gained", "lost"], "{:.0f}")


def _bars(title: str, names: Sequence[str], series: Sequence[Sequence[float]], labels: Sequence[str], form: str) -> str:
    most = _round_up(max((value for values in series for value in values), default=0.0) or 1.0)
    halves = [most / 2] if form.format(most / 2) != form.format(0) and float(form.format(most / 2)) == most / 2 else []
    parts = [_axes(title, [0.0, *halves, most], most, form), _legend(labels)]
    group = (WIDTH - LEFT - 20) / len(names)
    wide = 0.7 * group / len(series)
    for number, values in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        for at, value in enumerate(values):
            x, y = LEFT + group * (at + 0.15) + wide * number, _y(value, most)
            tall = HEIGHT - BOTTOM - y
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{colour}"/>')
    for at, name in enumerate(names):
        x = LEFT + group * (at + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{html.escape(name)}</text>')
    return _svg(parts)


def _legend(labels: Sequence[str]) -> str:
    """The names of the series in their colours, on the title's line."""
    names = [f'<tspan fill="{COLOURS[n % len(COLOURS)]}">{html.escape(label)}</tspan>' for n, label in enumerate(labels)]
    return f'<text x="{WIDTH - 20}" y="18" text-anchor="end">{" &#183; ".join(names)}</text>'


def _round_up(value: float) -> float:
    """The next number of one digit, or of two that end in 5."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= value * (1 - 1e-9))


def _axes(title: str, ticks: Sequence[float], most: float, form: str) -> str:
    lines = [f'<text x="{LEFT}" y="18" font-weight="bold">{html.escape(title)}</text>']
    for tick in ticks:
        y = _y(tick, most)
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d9dadd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{form.format(tick)}</text>'
        )
    return "".join(lines)


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 40) * value / most


def _svg(parts: Sequence[str]) -> str:
    style = 'font-family="system-ui,sans-serif" font-size="12"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" {style}>{"".join(parts)}</svg>'
    )

"""A report of `optiq eval`: scores with their intervals, differences with their tests, flips, how it was run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optiq.lab.evaluating import CAPABILITY, Report, percent, score
from optiq.lab.parts import charts
from optiq.lab.parts.elements import facts, folded, note, paragraph, size, table, words
from optiq.lab.text import line

COLOURS = (charts.MAIN, charts.SECOND, "var(--good)")


def report_view(report: Report) -> None:
    """Show it here."""
    models, baseline = report.models, report.data.get("baseline")
    head = ["task", "samples", *report.labels] + (["difference", "finding"] if baseline else [])
    rows = [_row(report, task) for task in [*report.tasks, CAPABILITY]]
    rows += [_model_row(report, name) for name in ("size", "bits per weight", "KL", "perplexity") if _has(report, name)]
    table(head, rows, right=tuple(range(1, 2 + len(models))), label="Scores")
    paragraph("Shares of right answers with 95 % intervals. Size is an axis of its own and in no score.", "soft small")
    charts.Chart(_picture(report), "Scores by task with their intervals")
    if missing := report.data.get("missing_tasks"):
        note(f"The mean lacks {', '.join(map(str, missing))}: it is comparable only with reports on the same tasks.")
    _flips(report)
    with folded("How it was run"):
        facts([(task, _protocol(models[0]["tasks"][task])) for task in report.tasks])
    words(f"The whole report, as a page and as data: {report.folder}", classes="soft small lines")


def _row(report: Report, task: str) -> list[object]:
    scores = [score(model, task) for model in report.models]
    row: list[object] = [task, f"{scores[0]['samples']:,}", *map(percent, scores)]
    pair = report.pair(report.models[0], task)
    if pair is None:
        return row
    change = f"{100 * pair['difference']:+.1f} ({100 * pair['low']:+.1f} to {100 * pair['high']:+.1f})"
    test = "" if pair["p"] is None else f", p {pair['p']:.2g}"
    return [*row, change, f"{pair['finding']}{test}"]


def _model_row(report: Report, name: str) -> list[object]:
    rest = ["", ""] if report.data.get("baseline") else []
    return [name, "", *(_figure(model, name) or "–" for model in report.models), *rest]


def _has(report: Report, name: str) -> bool:
    return any(_figure(model, name) for model in report.models)


def _figure(model: Mapping[str, Any], name: str) -> str:
    far = model.get("fidelity") or {}
    if name == "size":
        return size(model["bytes"]) if model.get("bytes") else ""
    if name == "bits per weight":
        return f"{model['bpw']:.3f}" if model.get("bpw") else ""
    if name == "KL":
        return f"{far['kl']['mean']:.5f}" if "kl" in far else ""
    found = far.get("perplexity")
    return f"{found:.3f}" if isinstance(found, int | float) else ""


def _picture(report: Report) -> dict[str, Any]:
    """A dot per model and task on its interval; models stand side by side."""
    names = [*report.tasks, CAPABILITY]
    series: list[dict[str, Any]] = []
    count = len(report.models)
    for number, (label, model) in enumerate(zip(report.labels, report.models, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        places = [at + 0.16 * (number - (count - 1) / 2) for at in range(len(names))]
        found = [score(model, name) for name in names]
        dots = [(x, 100 * one["value"], f"{label}: {percent(one)}") for x, one in zip(places, found, strict=True)]
        spans = [
            [{"coord": [x, 100 * one["low"]]}, {"coord": [x, 100 * one["high"]]}] for x, one in zip(places, found, strict=True)
        ]
        bars = {"data": spans, "symbol": "none", "lineStyle": {"color": colour, "type": "solid", "width": 2}, "silent": True}
        series.append({**charts.mark_series(dots, colour, 11), "name": line(label, 60), "markLine": bars})
    ticks = {"color": charts.SOFT, "showMinLabel": False, "showMaxLabel": False}
    x = charts.axis("", min=-0.5, max=len(names) - 0.5, interval=0.5, axisLabel={**ticks, "show": False})
    x["splitLine"] = {"show": False}
    labels = [{"value": [at, 0], "label": {"show": True, "formatter": line(name, 16)}} for at, name in enumerate(names)]
    under = {
        "type": "scatter",
        "data": labels,
        "symbolSize": 0,
        "silent": True,
        "label": {"position": "bottom", "distance": 12, "color": charts.SOFT},
    }
    legend = {**charts.LEGEND, "orient": "vertical", "itemGap": 6, "data": [one["name"] for one in series]}
    grid = {"left": 64, "right": 24, "top": 20 + 20 * count, "bottom": 52}
    y = charts.axis(
        "right answers, %",
        min=0,
        max=100,
        scale=False,
        nameGap=40,
        axisLine={"onZero": False, "lineStyle": {"color": charts.GRID}},
    )
    tooltip = {"renderMode": "richText", "confine": True, "formatter": "{b}"}
    return charts.options(x, y, [*series, under], legend=legend, grid=grid, tooltip=tooltip)


def _flips(report: Report) -> None:
    """Which samples were answered differently."""
    for task in report.tasks:
        pair = report.pair(report.models[0], task)
        if pair is None or not (pair["gained"] or pair["lost"]):
            continue
        with folded(f"{task}: {len(pair['gained'])} gained, {len(pair['lost'])} lost"):
            facts([(name, ", ".join(map(str, pair[name]))) for name in ("gained", "lost") if pair[name]])


def _protocol(task: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in (task.get("options") or {}).items())
    groups = ", ".join(f"{name} {100 * share:.1f} %" for name, share in (task.get("parts") or {}).items())
    notes = ", ".join(f"{count} samples: {text}" for text, count in (task.get("notes") or {}).items())
    return "; ".join(part for part in (told, groups, notes) if part)

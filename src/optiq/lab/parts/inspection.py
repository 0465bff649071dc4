"""What `optiq inspect --json` says of a model, as figures and two pictures: bits over depth, bytes per kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optiq.lab.parts import charts
from optiq.lab.parts.elements import box, facts, figures, folded, note, size, table
from optiq.lab.text import line

QUANTIZABLE = ("embedding", "linear", "experts", "heads", "head")


def inspection(report: Mapping[str, Any]) -> None:
    """Show it here."""
    plan = report.get("plan") or {}
    measured = plan.get("measured") or {}
    rows = [
        ("size", size(report["file_bytes"])),
        ("weights", f"{report['params']:,}"),
        ("bits per weight", f"{report['bpw']:.3f}" if report.get("bpw") else f"{report['file_bpw']:.2f}"),
    ]
    if measured:
        rows.append(("measured KL", f"{measured['mean']:.5f}"))
    figures(rows)
    with box("halves"):
        charts.Chart(_bits(report["tensors"]), "Bits of every tensor over the depth of the model", tall=True)
        charts.Chart(_bytes(report["kinds"]), "Bytes by kind of tensor and bits", tall=True)
    with folded("Details"):
        facts(_details(report))
    with folded(f"All {len(report['tensors'])} tensors"):
        _tensors(report["tensors"])
    for text in report.get("notes") or []:
        note(text)


def _bits(tensors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Roles by layers; what belongs to no layer stands in the first column."""
    used = [tensor for tensor in tensors if tensor["kind"] in QUANTIZABLE]
    roles = list(dict.fromkeys(str(tensor["role"]) for tensor in used))
    last = max((tensor["layer"] for tensor in used if tensor["layer"] is not None), default=0)
    cells = []
    for tensor in used:
        column = 0 if tensor["layer"] is None else int(tensor["layer"]) + 1
        cells.append(
            (column, roles.index(str(tensor["role"])), float(tensor["bits"]), f"{tensor['name']}: {tensor['bits']} bits")
        )
    columns = ["–", *[str(layer) for layer in range(last + 1)]]
    return charts.heatmap(roles, columns, cells, visualMap=charts.bits_map(int(tensor["bits"]) for tensor in used))


def _bytes(kinds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One bar per kind, its parts the widths."""
    names = list(dict.fromkeys(str(row["kind"]) for row in kinds))
    widths = sorted({int(row["bits"]) for row in kinds})
    series = []
    for bits in widths:
        sums = [sum(row["bytes"] for row in kinds if row["kind"] == name and row["bits"] == bits) / 1e6 for name in names]
        colour = charts.BIT_COLOURS.get(bits, charts.SOFT)
        series.append({"type": "bar", "stack": "all", "name": f"{bits} bits", "data": sums, "itemStyle": {"color": colour}})
    legend = {"bottom": 0, "textStyle": {"color": charts.SOFT}}
    grid = {"left": 90, "right": 24, "top": 16, "bottom": 92}
    return charts.options(
        charts.axis("MB"), charts.axis("", "category", data=[line(name, 30) for name in names]), series, legend=legend, grid=grid
    )


def _details(report: Mapping[str, Any]) -> list[tuple[str, object]]:
    said = report.get("metadata") or {}
    rows: list[tuple[str, object]] = [("directory", report["path"]), ("architecture", report["architecture"])]
    rows += [(key.replace("_", " "), said[key]) for key in ("base_model", "method", "reference", "encoder") if said.get(key)]
    rows += [(name, size(n)) for name, n in {**report["files"], **report["side"]}.items()]
    return rows


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            tensor["name"],
            " × ".join(map(str, tensor["shape"])),
            tensor["bits"],
            tensor["group_size"] or "–",
            size(tensor["bytes"]),
        ]
        for tensor in tensors
    ]
    table(["tensor", "shape", "bits", "group", "bytes"], rows, right=(2, 3, 4), label="All tensors")

"""`optiq inspect`: what a model directory holds, as a table, a strip of bits over depth, and a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from optiq.events import Events

if TYPE_CHECKING:
    from optiq.models.inspect import Report

EXAMPLE = """\
examples:
  optiq inspect OUT                      table of bits and bytes, and bits over depth
  optiq inspect OUT --picture bits.png   the same as a picture
  optiq inspect OUT --json               every tensor, for other programs
"""

_HEAD = ("kind", "bits", "group", "mode", "tensors", "weights", "bytes", "of file")
# 256-colour backgrounds by width, light to dark as in the pictures; dark text up to 5 bits.
_BACKGROUNDS = {2: 229, 3: 151, 4: 79, 5: 38, 6: 31, 8: 25, 16: 240, 32: 236}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("directory", metavar="DIR", help="an MLX or Hugging Face directory with safetensors")
    parser.add_argument("--picture", metavar="FILE", help="draw bits over depth and bytes per kind (.png, .svg, .pdf)")


def run(args: argparse.Namespace, events: Events) -> int:
    """Read the headers and print what they say."""
    from optiq.cli.output import show
    from optiq.models.inspect import by_kind, depth, inspect

    if args.picture:
        from optiq.quantize.picture import check_format

        check_format(args.picture)
    report = inspect(args.directory)
    data = report.as_json()
    if args.picture:
        from optiq.quantize.picture import inspection

        kinds = [(row.kind, row.bits, row.bytes) for row in by_kind(report.tensors)]
        inspection(args.picture, depth(report.tensors), kinds, _title(report))
    show(args, events, data, _text(report, coloured=sys.stdout.isatty()))
    return 0


def _title(report: Report) -> str:
    from pathlib import Path

    size = f"{report.bpw:.3f} bits per weight" if report.bpw is not None else f"{report.file_bpw:.2f} bits, not quantized"
    return f"{Path(report.path).resolve().name}: {size}"


def _text(report: Report, coloured: bool) -> str:
    from optiq.cli.facts import facts
    from optiq.cli.output import table
    from optiq.files import size_text
    from optiq.models.inspect import by_kind, depth

    lines = [("directory", report.path), ("architecture", report.architecture), ("weights", f"{report.params:,}")]
    if report.bpw is not None:
        quantized = f"{len(report.quantized)} tensors, codes, scales and biases"
        lines.append(("bits per weight", f"{report.bpw:.4f} ({quantized})"))
    files = f"{len(report.files)} file{'s' if len(report.files) > 1 else ''}"
    lines.append(("model files", f"{size_text(report.file_bytes)} ({report.file_bytes:,} bytes in {files})"))
    lines.append(("whole files", f"{report.file_bpw:.4f} bits per weight, headers of {report.header_bytes:,} bytes included"))
    lines += _receipts(report)
    rows = [
        (
            row.kind, str(row.bits), str(row.group_size or "-"), row.mode or "-", str(row.tensors), f"{row.params:,}",
            size_text(row.bytes), f"{100 * row.bytes / max(report.file_bytes, 1):.1f} %",
        )
        for row in by_kind(report.tensors)
    ]  # fmt: skip
    parts = [facts(lines), table(_HEAD, rows, right=(1, 2, 4, 5, 6, 7))]
    parts += [strip(depth(report.tensors), coloured)]
    if report.side:
        side = [(name, size_text(size)) for name, size in report.side.items()]
        parts.append("beside the model, not counted above:\n" + facts([(f"  {name}", size) for name, size in side]))
    parts += ["\n".join(f"note: {note}" for note in report.notes)] if report.notes else []
    return "\n\n".join(part for part in parts if part)


def _receipts(report: Report) -> list[tuple[str, str]]:
    """What the converter wrote down: ours, or the reference product's."""
    lines = []
    said = report.metadata or {}
    for key, label in (("base_model", "base model"), ("method", "method"), ("reference", "reference")):
        lines += [(label, str(said[key]))] if said.get(key) else []
    if said.get("achieved_bpw") is not None:
        lines.append(("bpw by its maker", f"{float(said['achieved_bpw']):.4g} (its own way of counting)"))
    plan = report.plan or {}
    if plan.get("bpw") is not None:
        lines.append(("bpw of the plan", f"{float(plan['bpw']):.4f} (tensors left in bf16 included)"))
    measured = plan.get("measured")
    if measured:
        low, high = measured["ci95"]
        lines.append(("measured KL", f"{measured['mean']:.5f} nats per token ({low:.5f} to {high:.5f})"))
    return lines


def strip(rows: Mapping[str, Mapping[int | None, int]], coloured: bool) -> str:
    """Bits over depth as text, one sign per layer: the width, ``b`` for 16 bits, ``f`` for 32, a dot for none."""
    if not rows:
        return ""
    width = max(len(role) for role in rows)
    last = max((layer for layers in rows.values() for layer in layers if layer is not None), default=0)
    lines = []
    for role, layers in rows.items():
        inside = {layer: bits for layer, bits in layers.items() if layer is not None}
        cells = [_cell(inside.get(layer), coloured) for layer in range(last + 1)] if inside else []
        outside = [_cell(layers[None], coloured)] if None in layers else []
        lines.append(f"{role.ljust(width)}  {''.join(outside + cells)}")
    ruler = "".join(str(layer).ljust(10) for layer in range(0, last + 1, 10)).rstrip()
    used = {bits for layers in rows.values() for bits in layers.values()}
    legend = [text for bits, text in ((16, "b: 16 bits"), (32, "f: 32 bits")) if bits in used]
    return "\n".join(["bits over depth" + (f" ({', '.join(legend)})" if legend else ""), f"{' ' * width}  {ruler}", *lines])


def _cell(bits: int | None, coloured: bool) -> str:
    if bits is None:
        return "."
    sign = {16: "b", 32: "f"}.get(bits, str(bits) if bits < 10 else "?")
    if not coloured:
        return sign
    return f"\x1b[48;5;{_BACKGROUNDS.get(bits, 244)};38;5;{16 if bits < 6 else 231}m{sign}\x1b[0m"

"""What `optiq lora check --json` says of training data: counts, and the first samples with what carries loss marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from optiq.lab.parts.elements import box, note, paragraph, table, words
from optiq.lab.text import line

COUNTS = ("records", "samples", "tokens", "loss_tokens", "truncated")


def examples(report: Mapping[str, Any]) -> None:
    """Show it here."""
    head = ["part", "records", "samples", "tokens", "with loss", "cut off", "left out", "longest"]
    rows = [_row(name, report[name]) for name in ("train", "valid") if report.get(name)]
    table(head, rows, right=tuple(range(1, len(head))), label="Training data")
    if not report.get("valid"):
        note("There is nothing to validate on: the last adapter is kept, not the best. A directory may hold valid.jsonl, too.")
    paragraph("The first samples as the model reads them; what is marked carries loss.", "soft")
    for sample in report.get("shown") or []:
        with box("sample"):
            words(line(sample["place"]), "span", "soft small")
            with ui.element("pre").props('tabindex="0" role="region"').classes("log") as text:
                for piece, carries in sample["pieces"]:
                    words(piece, "mark" if carries else "span", "carries" if carries else "")
            text.props["aria-label"] = f"sample {line(sample['place'])}"


def _row(name: str, part: Mapping[str, Any]) -> list[object]:
    counts = [f"{part[key]:,}" for key in COUNTS]
    return [name, *counts, len(part["dropped"]), f"{list(part['length'].values())[-1]:,} tokens"]

"""The picture of a training run: its losses over its steps, from the log. Data in: train.jsonl. Data out: loss.png."""

from __future__ import annotations

import json
from pathlib import Path

from optiq import files
from optiq.lora.train import LOG

NAME = "loss.png"


def draw(output: Path) -> Path:
    """Write the picture beside the log; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (output / LOG).read_text().splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, style in (("loss", "-"), ("valid", "o-")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label={"loss": "training", "valid": "validation"}[key])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    with files.writing(output / NAME) as file:
        figure.savefig(file, format="png", dpi=120)
    return output / NAME

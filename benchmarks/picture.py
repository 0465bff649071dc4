"""The picture of KL over bytes. In: the arms of `results/quality.json`. Out: PNG and SVG, the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INK, OURS, THEIRS = "#30343f", "#c2410c", "#64748b"


def draw(arms: list[dict[str, Any]], out: Path) -> None:
    """Mean KL on *score* over the bytes of `model*.safetensors`, with 95 % intervals; logarithmic ordinate."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "optiq"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.0, 5.0), layout="constrained")
    _series(axes, sorted((arm["ours"] for arm in arms), key=_bytes), OURS, "optiq convert --like", "o", "-")
    _series(axes, sorted((arm["theirs"] for arm in arms), key=_bytes), THEIRS, "peers", "s", "none")
    for arm in arms:
        point = (_bytes(arm["theirs"]) / 1e6, arm["theirs"]["kl_mean"])
        axes.annotate(arm["arm"], point, (4, 4), textcoords="offset points", fontsize=7, color=INK)
    axes.set_yscale("log")
    axes.set_xlabel("model*.safetensors, MB (1e6 bytes)")
    axes.set_ylabel("mean KL(bf16 || quantized), nats per token")
    axes.set_title("tiny-qwen3.5: divergence on held-out text over stored bytes", fontsize=10, color=INK)
    axes.grid(True, which="major", linewidth=0.4, alpha=0.6)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out.with_suffix(".png"), dpi=140, metadata={"Software": None})
    figure.savefig(out.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _bytes(side: dict[str, Any]) -> int:
    return side["file_bytes"]


def _series(axes: Any, rows: list[dict[str, Any]], colour: str, label: str, marker: str, line: str) -> None:
    x = [_bytes(row) / 1e6 for row in rows]
    y = [row["kl_mean"] for row in rows]
    spread = [[k - row["kl_ci95"][0] for k, row in zip(y, rows, strict=True)]]
    spread.append([row["kl_ci95"][1] - k for k, row in zip(y, rows, strict=True)])
    axes.errorbar(x, y, spread, color=colour, marker=marker, markersize=4, linestyle=line, linewidth=1.0, label=label)

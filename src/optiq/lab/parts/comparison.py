"""What `optiq compare --tokens` measured: sizes beside divergences, KL as colour over a text, where greedy texts part."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from optiq.lab.comparing import Comparison
from optiq.lab.parts.elements import box, folded, heading, paragraph, size, table, words
from optiq.lab.text import line

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0)  # nats; a token's colour is the number of these that its KL reaches
FINEST = 1e-6  # of the first level; what is less is rounding


def comparison_view(found: Comparison) -> None:
    """Show it here."""
    table(["model", "weights", "bits", "KL, nats", "p99", "perplexity"], _rows(found), right=(1, 2, 3, 4, 5), label="Models")
    heading("Token by token", 3)
    _Tokens(found)
    _texts(found)
    _flips(found)


def _rows(found: Comparison) -> list[list[object]]:
    reference = found.data["reference"]
    rows: list[list[object]] = [
        [
            f"{reference['label']} (reference)",
            size(reference["bytes"]),
            _bits(reference),
            "–",
            "–",
            f"{reference['perplexity']:.3f}",
        ]
    ]
    for model in found.data["models"]:
        kl = model["kl"]
        rows.append(
            [
                model["label"],
                size(model["bytes"]),
                _bits(model),
                f"{kl['mean']:.5f}",
                f"{kl['p99']:.4f}",
                f"{model['perplexity']:.3f}",
            ]
        )
    return rows


def _bits(model: Any) -> str:
    return "–" if model.get("bpw") is None else f"{model['bpw']:.3f}"


def levels(found: Comparison) -> tuple[float, ...]:
    """The colours' levels in nats: `LEVELS`, or powers of ten below where not one token in a hundred would reach the third."""
    furthest, scale = max(float(model["kl"]["p99"]) for model in found.data["models"]), 1.0
    while furthest < scale * LEVELS[2] and scale * LEVELS[0] > 2 * FINEST:
        scale /= 10
    return tuple(level * scale for level in LEVELS)


class _Tokens:
    """The text, coloured by the divergence of one model at each token."""

    def __init__(self, found: Comparison) -> None:
        self.found, self.model, self.document = found, 0, 0
        self.levels = levels(found)
        with box("grid"):
            models = {n: line(model["label"], 80) for n, model in enumerate(found.data["models"])}
            documents = {n: line(name, 80) for n, name in enumerate(found.documents)}
            for label, name, known in (("Model", "model", models), ("Document", "document", documents)):
                field = ui.select(known, label=label, value=0, on_change=lambda event, name=name: self._choose(name, event.value))
                field.props("outlined dense options-dense").props["aria-label"] = label
        with box("bar"):
            words("KL in nats:", classes="soft small")
            for level, least in enumerate(self.levels, 1):
                words(f"from {least:g}", "span", f"small token kl-{level}")
        self.place = box("log tokens").props('tabindex="0" role="region" aria-label="The text, coloured by divergence"')
        self._draw()

    def _choose(self, name: str, value: Any) -> None:
        setattr(self, name, int(value))
        self._draw()

    def _draw(self) -> None:
        self.place.clear()
        with self.place:
            for text, kl, theirs, ours in self.found.row(self.model, self.document):
                level = sum(kl >= least for least in self.levels)
                token = words(text, "span", f"token kl-{level}" if level else "token")
                if level:
                    token.props["title"] = line(f"{kl:.3g} nats; the reference expects {theirs!r}, this model {ours!r}", 200)


def _texts(found: Comparison) -> None:
    """Greedy texts beside the reference's, split where they part."""
    for model in found.data["models"]:
        for text in model.get("texts") or []:
            at = text["first_difference"]
            told = "the same text" if at is None else f"{at} tokens the same"
            with folded(f"{line(model['label'], 60)}, “{line(text['prompt'], 60)}”: {told}"), box("halves"):
                for name, key in ((found.data["reference"]["label"], "reference"), (model["label"], "text")):
                    with box("stack"):
                        words(line(name), "strong")
                        words(text[key], "span", "lines")


def _flips(found: Comparison) -> None:
    rows = [
        [name, model["label"], len(pair["gained"]), len(pair["lost"]), pair["finding"]]
        for model in found.data["models"]
        for name, pair in (model.get("flips") or {}).items()
    ]
    if rows:
        heading("Answers that flip", 3)
        table(["task", "model", "gained", "lost", "finding"], rows, right=(2, 3), label="Answers that flip")
        paragraph("Out of evaluations that were run here before.", "soft small")

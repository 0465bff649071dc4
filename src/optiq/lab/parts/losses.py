"""The losses of a training run as a picture that follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

from optiq.lab.parts import charts
from optiq.lab.tuning import Losses

RENEW_S = 0.7


def losses_picture(read: Callable[[], Losses], live: bool) -> charts.Chart:
    """Draw what ``read`` finds; anew while it is ``live``."""
    seen = read()
    picture = charts.Chart(_options(seen), "Loss over steps")

    def renew() -> None:
        nonlocal seen
        found = read()
        if found != seen:
            seen = found
            picture.draw(_options(found))

    if live:
        ui.timer(RENEW_S, renew)
    return picture


def _options(found: Losses) -> dict[str, Any]:
    series = [charts.line_series(found.training, "training")]
    if found.validation:
        series.append(charts.line_series(found.validation, "validation", charts.SECOND, dots=True))
    return charts.options(
        charts.axis("step", minInterval=1), charts.axis("loss, nats per token", nameGap=46), series, legend=charts.LEGEND
    )

"""Answers of earlier runs of `optiq eval`, found by the hash of a model's weights, and which of them flip between two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optiq.errors import FormatError
from optiq.evals import statistics
from optiq.evals.run import Result, read
from optiq.evals.statistics import Paired
from optiq.models.checkpoint import Checkpoint
from optiq.quantize.workspace import model_key


class Kept:
    """Results of earlier runs below a directory, by the model's key.

    Args:
        folder: where `optiq eval` wrote to; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._results = []
        for path in sorted(folder.rglob("*.jsonl")) if folder.is_dir() else ():
            with suppress(FormatError):  # other JSON lines may lie there
                self._results.append(read(path))

    def of(self, model: Path) -> dict[str, list[Result]]:
        """The results of one model by task."""
        key = model_key(Checkpoint.open(model))
        found: dict[str, list[Result]] = {}
        for result in self._results:
            if result.header["about"].get("model") == key:
                found.setdefault(result.task, []).append(result)
        return found


def flips(ours: Mapping[str, Sequence[Result]], theirs: Mapping[str, Sequence[Result]]) -> dict[str, Paired]:
    """Paired findings by task, of the first two results that were asked for in the same way."""
    found = {}
    for task in ours:
        pairs = [(a, b) for a in ours[task] for b in theirs.get(task, ()) if _asked(a) == _asked(b) and a is not b]
        if pairs:
            found[task] = statistics.compare(pairs[0][0].by_id, pairs[0][1].by_id)
    return found


def _asked(result: Result) -> dict[str, Any]:
    """What decides a result beside the model."""
    about = {name: value for name, value in result.header["about"].items() if name != "model"}
    return {name: result.header[name] for name in ("options", "samples", "data")} | {"about": about}

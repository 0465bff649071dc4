"""What runs of several models amount to: scores with intervals, sizes, differences to the first model; as data and as text.

Size stands beside the score as an axis of its own and is never folded into it. Takes results and plain numbers, reads no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optiq.evals import statistics
from optiq.evals.run import Result
from optiq.evals.statistics import Paired, Score
from optiq.files import size_text

SCHEMA = 1
FEW = 3  # files that are named one by one


@dataclass(frozen=True)
class Model:
    """One model's results.

    Args:
        label: as reports call it.
        results: by task.
        bytes: of its model files; None for a model behind a server.
        bpw: bits per weight of its quantized tensors, scales and biases included; None where nothing is quantized.
        fidelity: figures of `evals.fidelity` against the true model, or None where not measured.
    """

    label: str
    results: Mapping[str, Result]
    bytes: int | None = None
    bpw: float | None = None
    fidelity: Mapping[str, Any] | None = None

    @property
    def scores(self) -> dict[str, Score]:
        """Each task's score."""
        return {name: statistics.wilson(result.correct) for name, result in self.results.items()}

    @property
    def capability(self) -> Score:
        """The unweighted mean of the tasks."""
        return statistics.capability(list(self.scores.values()))


@dataclass(frozen=True)
class Report:
    """Models beside each other; with more than one, the last is the baseline of the others.

    Args:
        models: at least one, all with the same tasks.
        all_tasks: names of every task there is; a report on fewer says so.
    """

    models: tuple[Model, ...]
    all_tasks: tuple[str, ...]

    @property
    def baseline(self) -> Model | None:
        """What the others are compared with."""
        return self.models[-1] if len(self.models) > 1 else None

    @property
    def candidates(self) -> tuple[Model, ...]:
        """The others."""
        return self.models[:-1] if len(self.models) > 1 else ()

    @property
    def tasks(self) -> list[str]:
        """The tasks that all models ran, in the first one's order."""
        return [name for name in self.models[0].results if all(name in model.results for model in self.models)]

    @property
    def missing(self) -> list[str]:
        """Tasks that the mean lacks."""
        return [name for name in self.all_tasks if name not in self.tasks]

    def paired(self, model: Model) -> dict[str, Paired]:
        """A candidate against the baseline by task, and of the means under `capability`."""
        assert self.baseline is not None
        ours = [model.results[name].by_id for name in self.tasks]
        theirs = [self.baseline.results[name].by_id for name in self.tasks]
        found = {name: statistics.compare(a, b) for name, a, b in zip(self.tasks, ours, theirs, strict=True)}
        return found | {"capability": statistics.compare_means(ours, theirs)}

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
        models = [
            {
                "label": model.label,
                "bytes": model.bytes,
                "bpw": model.bpw,
                "capability": asdict(model.capability),
                "tasks": {name: asdict(score) | about(model.results[name]) for name, score in model.scores.items()},
                "fidelity": None if model.fidelity is None else dict(model.fidelity),
            }
            for model in self.models
        ]
        pairs = {
            model.label: {name: asdict(pair) | {"finding": pair.word} for name, pair in self.paired(model).items()}
            for model in self.candidates
        }
        data: dict[str, Any] = {"schema": SCHEMA, "kind": "optiq-eval-report", "models": models, "missing_tasks": self.missing}
        if self.baseline is not None:
            data |= {"baseline": self.baseline.label, "paired": pairs}
        return data


def about(result: Result) -> dict[str, Any]:
    """What a report says of how a task was run, and the task's own shares (loose verdicts, hops)."""
    return {
        "options": dict(result.header["options"]),
        "data": list(result.header["data"]),
        "parts": parts(result),
        "notes": notes(result),
    }


def parts(result: Result) -> dict[str, float]:
    """Shares of right answers in the groups that a task names (`details["part"]`), and of other verdicts (`details["also"]`)."""
    groups: dict[str, list[bool]] = {}
    for row in result.rows:
        if "part" in row.verdict.details:
            groups.setdefault(str(row.verdict.details["part"]), []).append(row.verdict.correct)
        for name, value in row.verdict.details.get("also", {}).items():
            groups.setdefault(name, []).append(bool(value))
    return {name: sum(values) / len(values) for name, values in groups.items()}


def notes(result: Result) -> dict[str, int]:
    """How many samples a task notes something of that differs from its protocol (`details["note"]`)."""
    return dict(Counter(row.verdict.details["note"] for row in result.rows if "note" in row.verdict.details))


def rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """The table of scores: heads, and one line per task, then the mean, the size and the divergence."""
    pairs = [report.paired(model) for model in report.candidates]
    head = ["task", "samples", *(model.label for model in report.models)]
    head += [f"{model.label} - baseline" for model in report.candidates]
    lines = []
    for name in report.tasks:
        scores = [model.scores[name] for model in report.models]
        lines.append([name, str(scores[0].samples), *map(percent, scores), *(_difference(pair[name]) for pair in pairs)])
    mean = "mean of " + (f"all {len(report.tasks)}" if not report.missing else f"{len(report.tasks)} of {len(report.all_tasks)}")
    means = [percent(model.capability) for model in report.models]
    lines.append([f"capability ({mean})", "", *means, *(_difference(pair["capability"]) for pair in pairs)])
    rest = [""] * len(pairs)
    lines.append(["size", "", *(size_text(m.bytes) if m.bytes else "-" for m in report.models), *rest])
    lines.append(["bits per weight", "", *(f"{m.bpw:.3f}" if m.bpw else "-" for m in report.models), *rest])
    if any(model.fidelity for model in report.models):
        lines.append(["KL to bf16, nats", "", *(_kl(model, "kl") for model in report.models), *rest])
        if any((model.fidelity or {}).get("kl_long") for model in report.models):
            lines.append(["KL to bf16, long texts", "", *(_kl(model, "kl_long") for model in report.models), *rest])
        lines.append(["perplexity", "", *(_perplexity(model) for model in report.models), *rest])
    return head, lines


def markdown(report: Report) -> str:
    """The report as Markdown: the table, flips, how it was run."""
    head, lines = rows(report)
    text = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", "Shares of right answers in percent with 95 % intervals (Wilson; the mean's by MOVER). " + _footnote(report)]
    for model in report.candidates:
        for name, pair in report.paired(model).items():
            if name != "capability" and (pair.gained or pair.lost):
                text += ["", f"{name}, {model.label}: {_flips(pair)}"]
    for name in report.tasks:
        result = report.models[0].results[name]
        groups = ", ".join(f"{part} {100 * share:.1f} %" for part, share in parts(result).items())
        text += ["", f"{name}: {_protocol(result)}{f'; {report.models[0].label}: {groups}' if groups else ''}"]
    return "\n".join(text) + "\n"


def percent(score: Score) -> str:
    """A share with its interval, in percent."""
    return f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _difference(pair: Paired) -> str:
    test = "" if pair.p is None else f", p {pair.p:.2g}"
    size = f"{100 * pair.difference:+.1f} ({100 * pair.low:+.1f} to {100 * pair.high:+.1f}{test})"
    return f"{size}: {pair.word}"


def _footnote(report: Report) -> str:
    if report.baseline is None:
        return ""
    return (
        f"Differences to {report.baseline.label} on the same samples: paired bootstrap intervals, McNemar's exact test; "
        '"no difference shown" where the test at 5 % shows none.'
    )


def _flips(pair: Paired) -> str:
    shown = [f"{len(names)} {word}" + (f" ({', '.join(names[:20])}{', ...' if len(names) > 20 else ''})" if names else "")
             for word, names in (("gained", pair.gained), ("lost", pair.lost))]  # fmt: skip
    return "; ".join(shown)


def _protocol(result: Result) -> str:
    chosen = ", ".join(f"{name} {value}" for name, value in result.header["options"].items())
    sources = "; ".join(_sources(result.header["data"]))
    noted = "".join(f"; {count} samples: {note}" for note, count in notes(result).items())
    return f"{chosen}{f'; data {sources}' if sources else ''}{noted}"


def _sources(data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a task's files came from, with licences and hashes; of many of one source their number (JSON has all hashes)."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in data:
        groups.setdefault(row.get("source", "own data"), []).append(row)
    found = []
    for source, rows in groups.items():
        files = f"{len(rows)} files" if len(rows) > FEW else ", ".join(f"{row['name']} {row['sha256'][:12]}" for row in rows)
        other = sum(not row.get("pinned", True) for row in rows)
        found.append(
            f"{files} of {source}, {rows[0].get('licence', 'no licence known')}"
            + (f", {other} with other bytes" if other else "")
        )
    return found


def _kl(model: Model, name: str) -> str:
    found = (model.fidelity or {}).get(name)
    if found is None:
        return "-"
    low, high = found["ci95"]
    return f"{found['mean']:.4f} ({low:.4f} to {high:.4f})"


def _perplexity(model: Model) -> str:
    return "-" if model.fidelity is None else f"{model.fidelity['perplexity']:.3f}"

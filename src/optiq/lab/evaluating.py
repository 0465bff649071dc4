"""Evaluation as the workbench sees it: the form as a command, and the reports that earlier runs left.

Form -> optiq eval -o evals/NAME -> evals/NAME/report.json -> Report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq import files
from optiq.errors import OptiqError
from optiq.lab.place import Place, slug
from optiq.lab.words import given

EVALUATE = "evaluate"  # what a job's facts call it
CAPABILITY = "capability"
GENERATED = ("--option", "mmlu.generate=true")  # a server tells no logits


@dataclass
class Form:
    """The flags of `optiq eval` that the form has; an empty text leaves the command's own default.

    Args:
        served: URL of the server that is asked, up to /v1; empty where files are read.
    """

    model: str = ""
    baseline: str = ""
    reference: str = ""
    served: str = ""
    tasks: list[str] = field(default_factory=list)
    samples: str = ""
    options: str = ""
    data: str = ""
    kv_bits: str = ""
    kv_config: str = ""
    thinking: bool = False
    card: bool = False

    def missing(self) -> str:
        """What has to be chosen yet; empty where nothing is."""
        return "" if self.model else "choose a model first"

    @property
    def output_name(self) -> str:
        """What the directory of the results is called, where nothing else is."""
        return slug(Path(self.model or "MODEL").name.replace(":", "-"))

    def words(self, output: Path) -> list[str]:
        """After ``optiq``."""
        found = ["eval", self.model or "MODEL"]
        found += ["--tasks", ",".join(self.tasks)] if self.tasks else []
        texts = [("--samples", self.samples), ("--data", self.data)]
        if self.served:
            texts.append(("--served", self.served))
        else:
            texts += [("--baseline", self.baseline), ("--reference", self.reference)]
            texts += [("--kv-bits", self.kv_bits), ("--kv-config", self.kv_config)]
        found += given(*texts)
        for option in self.options.split():
            found += ["--option", option]
        if self.served and (not self.tasks or "mmlu" in self.tasks):
            found += GENERATED
        found += ["--thinking"] if self.thinking else []
        found += ["--card"] if self.card and not self.served else []
        return [*found, "-o", str(output)]


@dataclass(frozen=True)
class Report:
    """What one run wrote.

    Args:
        folder: its directory.
        when: Unix seconds.
        data: report.json.
    """

    folder: Path
    when: float
    data: Mapping[str, Any]

    @property
    def models(self) -> Sequence[Mapping[str, Any]]:
        """The evaluated one, then what it was compared with."""
        found: Sequence[Mapping[str, Any]] = self.data["models"]
        return found

    @property
    def title(self) -> str:
        """Who was evaluated, against whom."""
        return " against ".join(str(model["label"]) for model in self.models)

    @property
    def labels(self) -> list[str]:
        """The models' names, the baseline marked as such: it may be called like what it is compared with."""
        names = [str(model["label"]) for model in self.models]
        return [*names[:-1], f"{names[-1]} (baseline)"] if self.data.get("baseline") else names

    @property
    def tasks(self) -> list[str]:
        """What all models ran."""
        first = self.models[0]["tasks"]
        return [name for name in first if all(name in model["tasks"] for model in self.models)]

    def pair(self, model: Mapping[str, Any], task: str) -> Mapping[str, Any] | None:
        """The comparison of a model with the baseline."""
        found: Mapping[str, Any] | None = (self.data.get("paired") or {}).get(model["label"], {}).get(task)
        return found


def score(model: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Value, low and high of a task, or of the mean of all."""
    found: Mapping[str, Any] = model[CAPABILITY] if task == CAPABILITY else model["tasks"][task]
    return found


def percent(found: Mapping[str, Any]) -> str:
    """A share with its interval."""
    return f"{100 * found['value']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def reports(place: Place) -> list[Report]:
    """The reports of the workbench, the newest first; what cannot be read is left out."""
    found = sorted(place.folder("evals").glob("*/report.json"), key=lambda file: -file.stat().st_mtime)
    return [report for file in found if (report := _report(file)) is not None]


def _report(file: Path) -> Report | None:
    try:
        data = files.read_json(file, what="evaluation report", schema=1)
        report = Report(file.parent, file.stat().st_mtime, data)
        for model in report.models:
            for task in (CAPABILITY, *report.tasks):
                percent(score(model, task))
    except (OptiqError, KeyError, TypeError, ValueError, IndexError):
        return None
    return report

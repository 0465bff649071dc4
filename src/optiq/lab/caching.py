"""Key/value caches in fewer bits as the workbench sees them: commands, damages, the curve of budgets, recipes that were made.

kv/<key>/{kv_sensitivity,kv_curve}.json -> a budget -> optiq kv-cache --from -> kv/<name>/kv_config.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq.errors import FormatError
from optiq.lab.curve import Curve, of_caches
from optiq.lab.jobs.job import Job, State
from optiq.lab.jobs.queue import Queue
from optiq.lab.place import Place, key_of, slug
from optiq.lab.text import line
from optiq.lab.words import given

MEASURE, MAKE = "measure caches", "make a cache recipe"  # what a job's facts call it
SIDES = ("keys", "values")
SCHEMES = {"best": "best", "turbo": "TurboQuant", "affine": "affine (MLX's codes)"}


@dataclass
class Form:
    """How damages are measured; an empty text leaves the command's own default."""

    widths: str = "2,3,4,5,6,8"
    scheme: str = "best"
    rows: str = ""
    length: str = ""

    @property
    def least(self) -> str:
        """The smallest width: the budget of the recipe that measuring makes on its way."""
        return min((part.strip() for part in self.widths.split(",") if part.strip().isdigit()), key=int, default="4")

    def words(self) -> list[str]:
        """As flags."""
        found = ["--candidate-bits", self.widths.replace(" ", "")]
        found += ["--scheme", self.scheme] if self.scheme != "best" else []
        return found + given(("--n-samples", self.rows), ("--seq-len", self.length))


@dataclass(frozen=True)
class Damage:
    """What each width costs in one layer's keys, and in its values: nats per token by bits."""

    layer: int
    keys: Mapping[int, float]
    values: Mapping[int, float]


@dataclass(frozen=True)
class Study:
    """One model's caches."""

    place: Place
    model: str

    @property
    def folder(self) -> Path:
        """Where damages are kept, a directory that belongs to the model alone."""
        return self.place.folder("kv") / key_of(self.model)

    @property
    def measured(self) -> bool:
        """Whether there are damages and their curve."""
        return (self.folder / "kv_curve.json").exists()

    def measure_words(self, form: Form) -> list[str]:
        """The command that measures."""
        again = ["--overwrite"] if self.measured else []
        return ["kv-cache", self.model, "--target-bits", form.least, *form.words(), "-o", str(self.folder), *again]

    def output_name(self, bits: float) -> str:
        """What a recipe's directory is called, where nothing else is."""
        return f"{slug(Path(self.model).name)}-{bits:.2f}bits"

    def make_words(self, bits: float, output: Path) -> list[str]:
        """The command that makes a recipe out of what was measured."""
        return ["kv-cache", self.model, "--target-bits", f"{bits:.2f}", "--from", str(self.folder), "-o", str(output)]

    def curve(self) -> Curve:
        """The curve.

        Raises:
            FormatError: it cannot be read.
        """
        return of_caches(self.folder / "kv_curve.json")

    def damages(self) -> list[Damage]:
        """A row per layer, as optiq kv-cache writes them.

        Raises:
            FormatError: they cannot be read.
        """
        file = self.folder / "kv_sensitivity.json"
        try:
            return [
                Damage(int(row["layer_idx"]), *({int(bits): float(cost) for bits, cost in row[side].items()} for side in SIDES))
                for row in json.loads(file.read_bytes())
            ]
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{file} cannot be read: {error!r}; measure again") from None

    def recipes(self, queue: Queue) -> list[Mapping[str, Any]]:
        """What jobs that made recipes for this model came to, the newest first."""
        jobs: Sequence[Job] = [job for job in queue.store.all() if job.facts.get("what") == MAKE and job.state is State.DONE]
        found = [queue.log(job.id).result for job in jobs if job.facts.get("model") == self.model]
        return [result for result in found if result]


def recipe_folders(place: Place) -> dict[str, str]:
    """Recipes on this disk, path by path, with names for people."""
    found = sorted(place.folder("kv").glob("*/kv_config.json"))
    return {str(file.parent): line(file.parent.name, 80) for file in found}

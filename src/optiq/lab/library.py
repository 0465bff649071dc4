"""What is on this disk, as `optiq list` sees it: models for the pages' pickers. Knows no file formats."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optiq.errors import OptiqError
from optiq.lab.ask import ask
from optiq.lab.text import line, plain


@dataclass(frozen=True)
class Model:
    """One model; ``name`` is what commands are given: a path, or the id of a model in the hub's cache."""

    name: str
    path: str
    bytes: int
    bpw: float | None
    kind: str
    problem: str

    @property
    def title(self) -> str:
        """How pages call it: the folder's name, or the hub id."""
        return line(Path(self.name).name if self.name == self.path else self.name, 80)

    @property
    def quantized(self) -> bool:
        """Whether its weights are codes already."""
        return self.kind in ("optiq", "mlx")


class Library:
    """The models of the hub's cache and of some folders; `refresh` reads again, `models` has what was read last."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self.models: list[Model] = []
        self.problem = ""
        self.read = False
        self._lock = asyncio.Lock()

    @property
    def words(self) -> list[str]:
        """The command that is asked."""
        return ["list", *[str(folder) for folder in self.folders if folder.is_dir()]]

    async def refresh(self) -> None:
        """Ask anew; a failure leaves the last answer and says so in ``problem``."""
        async with self._lock:
            try:
                answer = await ask(self.words)
            except OptiqError as error:
                self.problem = str(error)
            else:
                self.models, self.problem = [_model(row) for row in answer.get("models", [])], ""
            self.read = True

    async def ready(self) -> list[Model]:
        """The models, read now if they never were."""
        if not self.read:
            await self.refresh()
        return self.models

    def find(self, name: str) -> Model | None:
        """The model that a command would be given as ``name``, or that has this path."""
        return next((model for model in self.models if name in (model.name, model.path)), None)


def _model(row: dict[str, object]) -> Model:
    bpw, size = row.get("bpw"), row.get("bytes")
    path = str(Path(str(row.get("path"))).absolute())
    name = path if row.get("name") == row.get("path") else str(row.get("name"))
    if plain(name) != name:  # the queue takes no such word
        row = {**row, "kind": "broken", "problem": "its name has characters that a command line cannot carry; rename it"}
    return Model(
        name=name,
        path=path,
        bytes=size if isinstance(size, int) else 0,
        bpw=float(bpw) if isinstance(bpw, int | float) else None,
        kind=str(row.get("kind")),
        problem=str(row.get("problem") or ""),
    )

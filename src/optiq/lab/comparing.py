"""Comparing as the workbench sees it: sides, their commands, where their texts part, the figures of `optiq compare`.

Side -> optiq generate, one after the other, the same prompt and seed -> texts -> shared()
models -> optiq compare --tokens -o compared/NAME.json -> Comparison
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import Any

from optiq import files
from optiq.errors import OptiqError
from optiq.lab.place import Place, slug
from optiq.lab.text import line
from optiq.lab.words import given

TEXT, MEASURE = "compare texts", "compare models"  # what a job's facts call it
MOST_SIDES = 3
CACHES = {"": "16 bits", "8": "8 bits", "6": "6 bits", "4": "4 bits", "3": "3 bits"}


@dataclass
class Side:
    """What is compared: a model, perhaps with an adapter, perhaps with packed caches (bits, or a recipe's directory)."""

    model: str = ""
    adapter: str = ""
    cache: str = ""

    @property
    def title(self) -> str:
        """How pages call it."""
        parts = [Path(self.model).name, Path(self.adapter).name]
        parts.append(f"cache {self.cache} bits" if self.cache in CACHES and self.cache else Path(self.cache).name)
        return line(" + ".join(part for part in parts if part), 120)

    def words(self) -> list[str]:
        """What stands for it on the command line of `optiq generate`."""
        found = [self.model or "MODEL"]
        found += ["--adapter", self.adapter] if self.adapter else []
        if self.cache:
            found += ["--kv-bits" if self.cache in CACHES else "--kv-config", self.cache]
        return found


@dataclass
class Form:
    """The same question for all sides; an empty text leaves the command's own default."""

    sides: list[Side] = field(default_factory=lambda: [Side(), Side(), Side()])
    prompt: str = "Write two sentences about the sea."
    seed: str = "0"
    temperature: str = ""
    tokens: str = "120"
    thinking: bool = False

    @property
    def chosen(self) -> list[Side]:
        """The sides that have a model."""
        return [side for side in self.sides if side.model]

    @property
    def models(self) -> list[str]:
        """The different models of all sides, the reference first."""
        return list(dict.fromkeys(side.model for side in self.chosen))

    def text_words(self, side: Side) -> list[str]:
        """The command that lets one side write."""
        found = ["generate", *side.words(), "--prompt", self.prompt, "--seed", self.seed.strip() or "0"]
        found += given(("--temp", self.temperature), ("--max-tokens", self.tokens))
        return found if self.thinking else [*found, "--no-thinking"]

    def measure_words(self, place: Place, output: Path) -> list[str]:
        """The command that measures the models' divergence token by token, and answers that flip in earlier evaluations."""
        prompts = ["--prompt", self.prompt] if self.prompt.strip() else []
        names = self.models or ["MODEL", "OTHER"]
        return ["compare", *names, "--tokens", *prompts, "--results", str(place.folder("evals")), "-o", str(output)]

    @property
    def output_name(self) -> str:
        """What the file with the figures is called, where nothing else is."""
        return slug("-".join(Path(model).name for model in self.models) or "compared")


def shared(texts: Sequence[str]) -> int:
    """How many characters all texts begin with alike."""
    return len(commonprefix(list(texts)))


@dataclass(frozen=True)
class Comparison:
    """What `optiq compare --tokens` wrote."""

    path: Path
    data: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Who, against whom."""
        names = [str(model["label"]) for model in self.data["models"]]
        return f"{', '.join(names)} against {self.data['reference']['label']}"

    @property
    def documents(self) -> list[str]:
        """Names of the documents, in order."""
        tokens = self.data["tokens"]
        return [
            f"{domain}: {name.rpartition('/')[2]}" for domain, name in zip(tokens["domains"], tokens["documents"], strict=True)
        ]

    def row(self, model: int, document: int) -> list[tuple[str, float, str, str]]:
        """A document's tokens: text, KL of what was predicted there (0 for the first), the reference's likeliest, the model's."""
        tokens = self.data["tokens"]
        ours = tokens["models"][model]
        before = list(zip(tokens["reference"]["likeliest"][document], ours["likeliest"][document], strict=True))
        kls = [0.0, *(float(value) for value in ours["kl"][document])]
        likeliest = [("", ""), *before]
        texts = tokens["texts"][document]
        return [(str(text), kl, str(a), str(b)) for text, kl, (a, b) in zip(texts, kls, likeliest, strict=False)]


def comparisons(place: Place) -> list[Comparison]:
    """The comparisons of the workbench, the newest first; what cannot be read is left out."""
    found = sorted(place.folder("compared").glob("*.json"), key=lambda file: -file.stat().st_mtime)
    return [one for file in found if (one := _comparison(file)) is not None]


def _comparison(file: Path) -> Comparison | None:
    try:
        found = Comparison(file, files.read_json(file, what="comparison"))
        for number in range(len(found.data["models"])):
            found.row(number, 0)
        return found if found.documents and found.title else None
    except (OptiqError, KeyError, TypeError, ValueError, IndexError):
        return None

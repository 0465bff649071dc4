"""Models beside a reference: size, divergence token by token, perplexity, where greedy texts part, which answers flip.

One model after the other: divergences are walked block by block (`optiq.measure.divergence`), the reference's hidden states are
kept for the next model, and of the engines that write the greedy texts one is in memory at a time. Answers come from earlier
runs of `optiq eval`, found by the hash of the model's weights. Results are data; `cli/compare.py` writes them as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from optiq.errors import InputError
from optiq.evals.earlier import Kept, flips
from optiq.evals.fidelity import perplexity
from optiq.evals.partings import Parting, conversations, partings
from optiq.evals.statistics import Paired
from optiq.events import QUIET, Events
from optiq.measure import text
from optiq.measure.divergence import Divergence, divergence
from optiq.measure.tokens import Tokens, tokenise
from optiq.models.chat import load_tokenizer
from optiq.models.inspect import Report, inspect

DIGITS = 6  # of per-token figures in JSON


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Args:
        length: tokens per document, at most the model's context.
        rows: documents per domain.
        file: own text instead of the held-out one: JSON lines as for calibration, anything else as one text.
        prompts: own prompts for the greedy texts.
        texts: how many held-out prompts there are without own ones; 0 for none.
        max_tokens: of a greedy text.
        results: directory that earlier runs of `optiq eval` wrote to.
    """

    length: int = 512
    rows: int = 2
    file: Path | None = None
    prompts: tuple[str, ...] = ()
    texts: int = 4
    max_tokens: int = 64
    results: Path = Path("evals")


@dataclass(frozen=True)
class Side:
    """One model beside the reference.

    Args:
        label: as tables call it.
        about: bytes and bits.
        far: divergence from the reference.
        partings: greedy texts, prompt by prompt.
        flips: paired findings by task, the reference as the baseline.
    """

    label: str
    about: Report
    far: Divergence
    partings: tuple[Parting, ...] = ()
    flips: Mapping[str, Paired] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All models beside one.

    Args:
        label: of the reference.
        about: its bytes and bits.
        tokens: the text.
        pieces: the text of each token, [N][L].
        sides: the models.
        vocabulary: the text of each token that some model finds likeliest, by id.
    """

    label: str
    about: Report
    tokens: Tokens
    pieces: Sequence[Sequence[str]]
    sides: tuple[Side, ...]
    vocabulary: Mapping[int, str]

    def as_json(self, per_token: bool) -> dict[str, Any]:
        """Everything; with `per_token` also the figures of each token."""
        losses = self.sides[0].far.losses[0]
        data: dict[str, Any] = {
            "schema": 1,
            "kind": "optiq-compare",
            "text": {"set": self.tokens.set_name, "sha256": self.tokens.sha256, "documents": len(self.tokens.ids),
                     "length": self.tokens.ids.shape[1], "notes": list(self.tokens.notes)},
            "reference": _size(self.label, self.about) | {"perplexity": perplexity(losses)},
            "models": [_side(side) for side in self.sides],
        }  # fmt: skip
        return data | {"tokens": self._per_token()} if per_token else data

    def _per_token(self) -> dict[str, Any]:
        first = self.sides[0].far
        return {
            "documents": list(self.tokens.documents),
            "domains": list(self.tokens.domains),
            "texts": [list(row) for row in self.pieces],
            "reference": {"loss": _rounded(first.losses[0]), "likeliest": self._words(first.tops[0])},
            "models": [
                {
                    "label": side.label,
                    "kl": _rounded(side.far.kl),
                    "loss": _rounded(side.far.losses[1]),
                    "likeliest": self._words(side.far.tops[1]),
                }
                for side in self.sides
            ],
        }

    def _words(self, ids: np.ndarray) -> list[list[str]]:
        return [[self.vocabulary[int(token)] for token in row] for row in ids]


def compare(
    reference: tuple[str, Path], models: Sequence[tuple[str, Path]], settings: Settings, events: Events = QUIET
) -> Comparison:
    """Measure models against one.

    Args:
        reference: label and directory of the model that the others are compared with.
        models: likewise, at least one.
        settings: what is compared.
        events: where progress goes.

    Raises:
        InputError: vocabularies differ, or there is not one document of text.
    """
    tokens = document_tokens(reference[1], settings)
    tokenizer = load_tokenizer(reference[1])
    with TemporaryDirectory() as kept:
        far = [divergence(reference[1], path, tokens, events, Path(kept)) for _, path in models]
    chats = conversations(settings.prompts, settings.texts)
    parted = partings(reference[1], [path for _, path in models], chats, settings.max_tokens, events)
    known = Kept(settings.results)
    theirs = known.of(reference[1])
    sides = tuple(
        Side(label, inspect(path), distance, one, flips(known.of(path), theirs))
        for (label, path), distance, one in zip(models, far, parted, strict=True)
    )
    seen = np.unique(np.concatenate([tokens.ids.ravel(), *(top.ravel() for one in far for top in one.tops)]))
    vocabulary = {int(token): tokenizer.decode([int(token)]) for token in seen}
    pieces = [[vocabulary[int(token)] for token in row] for row in tokens.ids]
    return Comparison(reference[0], inspect(reference[1]), tokens, pieces, sides, vocabulary)


def document_tokens(model: Path, settings: Settings) -> Tokens:
    """The text that is compared: own, or the held-out one, as token rows; a short own text is one short row.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    tokenizer = load_tokenizer(model)
    if settings.file is None:
        return tokenise(text.samples("score"), tokenizer, settings.length, settings.rows, "score")
    if settings.file.suffix == ".jsonl":
        samples = text.read_samples(settings.file)
    else:
        samples = [text.Sample(settings.file.name, "custom", None, _read(settings.file), None, str(settings.file), "")]
    longest = max(len(tokenizer.encode(sample.text or "")) for sample in samples)
    length = settings.length if len(samples) > 1 or longest == 0 else min(settings.length, longest)
    return tokenise(samples, tokenizer, length, settings.rows, str(settings.file))


def _read(path: Path) -> str:
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}); give a text file or JSON lines") from error
    if not found.strip():
        raise InputError(f"{path} is empty, expected a text")
    return found


def _size(label: str, about: Report) -> dict[str, Any]:
    return {"label": label, "bytes": about.file_bytes, "bpw": about.bpw}


def _side(side: Side) -> dict[str, Any]:
    ours, domains = side.far.losses[1], np.array(side.far.domains)
    return _size(side.label, side.about) | {
        "kl": side.far.summary(),
        "perplexity": perplexity(ours),
        "perplexity_by_domain": {name: perplexity(ours[domains == name]) for name in dict.fromkeys(side.far.domains)},
        "texts": [
            {"prompt": one.prompt, "first_difference": one.at, "reference": one.texts[0], "text": one.texts[1]}
            for one in side.partings
        ],
        "flips": {
            name: {
                "difference": pair.difference, "ci95": [pair.low, pair.high], "p": pair.p, "finding": pair.word,
                "gained": list(pair.gained), "lost": list(pair.lost),
            }
            for name, pair in side.flips.items()
        },
    }  # fmt: skip


def _rounded(values: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in values]

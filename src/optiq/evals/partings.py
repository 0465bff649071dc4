"""Where the greedy texts of models part from a reference's: one engine after the other, the same prompts, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq.evals.generator import open_generator
from optiq.evals.prompts import Settings
from optiq.evals.task import Sample
from optiq.events import QUIET, Events
from optiq.kernels import memory
from optiq.measure import text
from optiq.models.chat import load_tokenizer

Chat = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Parting:
    """A greedy text beside the reference's.

    Args:
        prompt: what both go on from.
        at: tokens that agree before the first difference; None where there is none.
        texts: the reference's and the model's.
        rest: what each goes on with from there, as text.
    """

    prompt: str
    at: int | None
    texts: tuple[str, str]
    rest: tuple[str, str]


def partings(
    reference: Path, models: Sequence[Path], chats: Sequence[Chat], max_tokens: int, events: Events = QUIET
) -> list[tuple[Parting, ...]]:
    """Of each model, its greedy texts beside the reference's.

    Args:
        reference: directory of the model that the others are compared with.
        models: directories of the others.
        chats: what the texts answer.
        max_tokens: of a text.
        events: where progress goes.
    """
    samples = [Sample(f"text/{n}", None, tuple(chat), max_tokens=max_tokens) for n, chat in enumerate(chats)]
    if not samples:
        return [() for _ in models]
    written = []
    with events.stage("greedy texts", 1 + len(models), "models") as stage:
        for path in (reference, *models):
            written.append(open_generator(str(path), Settings()).tokens(samples))
            memory.trim()
            stage.advance()
    decode = load_tokenizer(reference).decode
    return [
        tuple(parting(str(s.messages[-1]["content"]), written[0][s.id], ours[s.id], decode) for s in samples)
        for ours in written[1:]
    ]


def conversations(prompts: Sequence[str], held_out: int) -> list[Chat]:
    """Own prompts as conversations; without them so many of the held-out instructions."""
    if prompts:
        return [({"role": "user", "content": prompt},) for prompt in prompts]
    chats = [sample.messages for sample in text.samples("score") if sample.domain == "instructions" and sample.messages]
    return [_opening(chat) for chat in chats[:held_out]]


def parting(prompt: str, theirs: Sequence[int], ours: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Parting:
    """Where two texts part.

    Args:
        prompt: for the reader.
        theirs: token ids of the reference's.
        ours: token ids of the model's.
        decode: ids to text.
    """
    shorter = min(len(theirs), len(ours))
    at = next((n for n in range(shorter) if theirs[n] != ours[n]), None if len(theirs) == len(ours) else shorter)
    rest = ("", "") if at is None else (decode(theirs[at:]), decode(ours[at:]))
    return Parting(prompt, at, (decode(theirs), decode(ours)), rest)


def _opening(chat: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """A chat up to its first reply."""
    end = next((n for n, message in enumerate(chat) if message["role"] == "assistant"), len(chat))
    return chat[:end]

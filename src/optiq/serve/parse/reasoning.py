"""Splits a reply into reasoning and answer while it arrives.

A reply may begin with blocks of reasoning (`Tags`); the prompt may have opened the first. What comes after them is the
answer, whatever tags it speaks of. White space beside a tag is layout and left out. Knows nothing of tools.
"""

from __future__ import annotations

from optiq.models.thinking import THINK, Tags, strip_reasoning
from optiq.serve.parse.deltas import Content, Delta, Reasoning
from optiq.serve.parse.tape import SPACES, Tape, Waiting, open_end

__all__ = ["THINK", "ReasoningSplitter", "Tags", "strip_reasoning"]


class ReasoningSplitter:
    """Reasoning and answer of one reply.

    Args:
        tags: the model's.
        opened: the prompt ends inside the reasoning (`Tags.opened_by`).

    Attributes:
        inside: the text so far ends inside the reasoning.
    """

    def __init__(self, tags: Tags = THINK, opened: bool = False) -> None:
        self._tags = tags
        self._tape = Tape()
        self._deltas: list[Delta] = []
        self.inside = opened
        self._run = self._read()

    def add(self, piece: str) -> list[Delta]:
        """The deltas that this piece settles."""
        self._tape.feed(piece)
        return self._go()

    def finish(self) -> list[Delta]:
        """The rest, at the end of the reply."""
        self._tape.close()
        return self._go()

    def _go(self) -> list[Delta]:
        next(self._run, None)
        found, self._deltas = self._deltas, []
        return found

    def _read(self) -> Waiting[None]:
        tape = self._tape
        while True:
            yield from tape.space()
            opens = yield from tape.word(self._tags.open)  # some models open again what the prompt has opened
            if not opens and not self.inside:
                break
            yield from tape.space()
            self.inside = True
            tape.drop(tape.at)
            yield from self._reasoning()
            if self.inside:
                return
            yield from tape.space()
            tape.drop(tape.at)
        while True:
            if tape.text:
                self._deltas.append(Content(tape.text))
            tape.drop(len(tape.text))
            if tape.closed:
                return
            yield

    def _reasoning(self) -> Waiting[None]:
        """Pass on reasoning up to its closing tag, or to the end."""
        tape, close = self._tape, self._tags.close
        while self.inside:
            end = tape.text.find(close)
            if end >= 0:
                self.inside = False
            else:
                end = len(tape.text) - (0 if tape.closed else open_end(tape.text, (close,)))
            kept = end if tape.closed and self.inside else len(tape.text[:end].rstrip(SPACES))
            if kept:
                self._deltas.append(Reasoning(tape.text[:kept]))
            tape.drop(kept if self.inside else end + len(close))
            if tape.closed:
                return
            if self.inside:
                yield

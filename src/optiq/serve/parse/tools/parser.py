"""Finds calls of tools in the text of an answer while it arrives; what a call looks like is the format's business.

Whatever does not turn out to be a call stays text. White space before a call, and between the last one and the end, is
layout and left out. A call is told as soon as its beginning is certain, so that long arguments stream; one that breaks
later ends as broken, with its source.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from optiq.serve.parse.deltas import Delta
from optiq.serve.parse.tape import SPACES, Tape, Waiting, open_end
from optiq.serve.parse.tools.schema import Tools
from optiq.serve.parse.tools.sink import Sink

SLICE = 4096  # characters that are read at once
ID_BYTES = 12  # as many random bytes as OpenAI's ids have


def new_id() -> str:
    """An id for a call."""
    return f"call_{secrets.token_hex(ID_BYTES)}"


@dataclass(frozen=True)
class Format:
    """A way to write calls.

    Args:
        openers: the words with which calls begin.
        read: reads one call, or several that belong together, from the opener on; whether all of it was well formed.
            Where it was not, the tape's place counts only if a call had begun (`Sink.open`).
        line_openers: words that count as openers at the beginning of a line alone.
        new_id: makes ids that the family's templates take.
    """

    openers: tuple[str, ...]
    read: Callable[[Tape, Sink, Tools], Waiting[bool]]
    line_openers: tuple[str, ...] = ()
    new_id: Callable[[], str] = new_id


def _opener_pattern(format: Format, line: str) -> re.Pattern[str]:
    """Finds the next opener; group `line`, where it matched, holds one that counts at the beginning of a line alone.

    Args:
        format: says which there are.
        line: matches the beginning of a line.
    """
    anywhere, at_line = ("|".join(map(re.escape, words)) for words in (format.openers, format.line_openers))
    return re.compile(rf"{anywhere}|{line}[ \t\r]*(?P<line>{at_line})" if at_line else anywhere)


class ToolParser:
    """The calls in a text that arrives in pieces.

    Args:
        format: how they are written.
        tools: those that the request offers.
        new_id: makes ids; None for the format's own.
    """

    def __init__(self, format: Format, tools: Tools, new_id: Callable[[], str] | None = None) -> None:
        self._format, self._tools = format, tools
        self._tape = Tape()
        self._sink = Sink(self._tape, new_id or format.new_id)
        self._openers = (*format.openers, *format.line_openers)
        self._at_line, self._within_line = _opener_pattern(format, r"(?:\A|\n)"), _opener_pattern(format, r"\n")
        self._run = self._read()

    def add(self, piece: str) -> list[Delta]:
        """The deltas that this piece settles."""
        for start in range(0, len(piece), SLICE):  # what is dropped from the tape costs a copy of the rest
            self._tape.feed(piece[start : start + SLICE])
            next(self._run, None)
        return self._sink.drain()

    def finish(self) -> list[Delta]:
        """The rest, at the end of the text."""
        self._tape.close()
        next(self._run, None)
        return self._sink.drain()

    def _read(self) -> Waiting[None]:
        tape = self._tape
        while True:
            found = self._opener()
            if found is None:
                self._pass_text(0 if tape.closed else open_end(tape.text, self._openers))
                if tape.closed:
                    return
                yield
                continue
            begin = len(tape.text[:found].rstrip(SPACES))
            self._sink.text(tape.text[:begin])
            tape.drop(begin)
            yield from self._call(found - begin)

    def _opener(self) -> int | None:
        """Where the next opener stands."""
        match = (self._at_line if self._sink.line_blank else self._within_line).search(self._tape.text)
        return None if match is None else match.start(match.lastgroup or 0)

    def _pass_text(self, hold: int) -> None:
        """Pass all text on but its last `hold` characters and, before the end, the white space before them."""
        tape = self._tape
        end = len(tape.text) - hold
        if not tape.closed:
            end = len(tape.text[:end].rstrip(SPACES))
        text = tape.text[:end]
        self._sink.text("" if self._sink.after_call and not text.strip(SPACES) else text)
        tape.drop(end)

    def _call(self, opener: int) -> Waiting[None]:
        """Read what begins with an opener; the white space before it is at the beginning of the tape."""
        tape, sink = self._tape, self._sink
        tape.at, sink.since, before = opener, 0, sink.calls
        whole = yield from self._format.read(tape, sink, self._tools)
        if whole:
            tape.drop(tape.at)
        elif sink.open:
            sink.end(broken=tape.text[sink.since : tape.at])
            tape.drop(tape.at)
        elif sink.calls > before:  # some calls were whole before it went wrong
            tape.drop(sink.since)
        else:
            sink.text(tape.text[: opener + 1])
            tape.drop(opener + 1)

"""Where parsers of calls put what they read. Numbers and names the calls; knows no format."""

from __future__ import annotations

from collections.abc import Callable

from optiq.serve.parse.deltas import CallArguments, CallEnd, CallStart, Content, Delta
from optiq.serve.parse.tape import SPACES, Tape


class Sink:
    """Collects deltas, and remembers what of them is not settled.

    Args:
        tape: what is read.
        new_id: makes the ids of calls.

    Attributes:
        open: a call has begun and not ended.
        since: where on the tape the text begins that no delta stands for yet.
        calls: how many have begun.
        after_call: nothing has come since a whole call.
        line_blank: the text's last line is white space, or there is none.
    """

    def __init__(self, tape: Tape, new_id: Callable[[], str]) -> None:
        self._tape, self._new_id = tape, new_id
        self._deltas: list[Delta] = []
        self.open = False
        self.since = 0
        self.calls = 0
        self.after_call = False
        self.line_blank = True

    def text(self, text: str) -> None:
        """Text of the answer."""
        if text:
            _, newline, last = text.rpartition("\n")
            self._deltas.append(Content(text))
            self.line_blank = (self.line_blank or bool(newline)) and not last.strip(SPACES)
            self.after_call = False

    def start(self, name: str, id: str = "") -> None:
        """A call begins; without an id it gets a new one."""
        self._deltas.append(CallStart(self.calls, id or self._new_id(), name))
        self.calls += 1
        self.open = True

    def arguments(self, text: str) -> None:
        """More of the arguments' JSON text."""
        if text:
            self._deltas.append(CallArguments(self.calls - 1, text))

    def end(self, broken: str = "") -> None:
        """The call is over; `broken` is its source where it is not whole."""
        self._deltas.append(CallEnd(self.calls - 1, broken))
        self.open, self.since = False, self._tape.at
        self.line_blank = self.after_call = not broken

    def call(self, name: str, arguments: str) -> None:
        """A whole call at once."""
        self.start(name)
        self.arguments(arguments)
        self.end()

    def drain(self) -> list[Delta]:
        """What has been collected since the last time."""
        found, self._deltas = self._deltas, []
        return found

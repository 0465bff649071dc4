"""One reply, from pieces of text to typed deltas: the reasoning splitter and then the parser of tool calls.

Text comes in as `optiq.generate.text` makes it (whole characters, no stop strings), deltas go out (`parse.deltas`). Knows
neither tokens nor protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optiq.models.thinking import Tags, tags_of
from optiq.serve.parse.deltas import CallArguments, CallEnd, CallStart, Content, Delta, Reasoning, gather, merge
from optiq.serve.parse.reasoning import ReasoningSplitter
from optiq.serve.parse.tools import FORMATS
from optiq.serve.parse.tools.detect import detect
from optiq.serve.parse.tools.parser import ToolParser
from optiq.serve.parse.tools.schema import Tools


@dataclass(frozen=True)
class Shape:
    """How a model's replies to a request are read.

    Args:
        tags: of its reasoning; None for a model that does not think.
        opened: the prompt ends inside the reasoning.
        format: of its tool calls (`FORMATS`); None where its template knows no calls.
        tools: those of the request; without any, a reply has no calls.
    """

    tags: Tags | None = None
    opened: bool = False
    format: str | None = None
    tools: Tools = field(default_factory=Tools)

    @classmethod
    def of(cls, template: str, prompt: str, tools: Sequence[Mapping[str, Any]] = ()) -> Shape:
        """The shape of the reply to a prompt; the template decides tags and format.

        Args:
            template: the text of the model's chat template; "" for a model without one.
            prompt: what it wrote, up to where the reply begins.
            tools: those of the request, as in the OpenAI API.
        """
        tags = tags_of(template)
        opened = tags is not None and tags.opened_by(prompt)
        return cls(tags, opened, detect(template) if tools else None, Tools(tools))


class Output:
    """The deltas of one reply.

    Args:
        shape: how it is read.
        new_id: makes ids of calls; None for the format's own.

    Raises:
        InputError: `shape.format` is unknown.
    """

    def __init__(self, shape: Shape, new_id: Callable[[], str] | None = None) -> None:
        self._shape, self._new_id = shape, new_id
        self._splitter = ReasoningSplitter(shape.tags, shape.opened) if shape.tags is not None else None
        self._calls = self._parser()
        self._reasoning: list[str] = []

    def add(self, piece: str) -> list[Delta]:
        """The deltas that this piece of text settles."""
        return self._parsed([Content(piece)] if self._splitter is None else self._splitter.add(piece))

    def finish(self) -> list[Delta]:
        """The rest, at the end of the reply."""
        found = self._parsed([] if self._splitter is None else self._splitter.finish())
        if self._calls is not None:
            found += self._calls.finish()
        if self._splitter is not None and self._splitter.inside:
            found += self._forgotten()
        return found

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._splitter is not None and self._splitter.inside

    def _parser(self) -> ToolParser | None:
        shape = self._shape
        if shape.format is None or not len(shape.tools):
            return None
        return ToolParser(FORMATS[shape.format], shape.tools, self._new_id)

    def _parsed(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Reasoning as it is, calls found in content."""
        if self._calls is None:
            return [delta for delta in deltas if not isinstance(delta, Content) or delta.text]
        found: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, Content):
                found += self._calls.add(delta.text)
            else:
                found.append(delta)
                self._reasoning += [delta.text] if isinstance(delta, Reasoning) else []
        return found

    def _forgotten(self) -> list[Delta]:
        """The calls with which a reply ends that never closed its reasoning: models forget the tag and stop after a call.

        They count where nothing comes after them and all name tools of the request: a plan goes on, a call ends the turn.
        """
        parser = self._parser()
        if parser is None:
            return []
        deltas = merge(parser.add("".join(self._reasoning)) + parser.finish())
        last = max((place for place, delta in enumerate(deltas) if isinstance(delta, Content)), default=-1)
        tail = [delta for delta in deltas[last + 1 :] if isinstance(delta, CallStart | CallArguments | CallEnd)]
        calls = gather(tail)
        if calls.content or any(call.name not in self._shape.tools for call in calls.calls):
            return []
        first = tail[0].index if tail else 0
        return [_renumbered(delta, delta.index - first) for delta in tail]


def _renumbered(delta: CallStart | CallArguments | CallEnd, index: int) -> Delta:
    match delta:
        case CallStart(_, id, name):
            return CallStart(index, id, name)
        case CallArguments(_, text):
            return CallArguments(index, text)
        case CallEnd(_, broken):
            return CallEnd(index, broken)

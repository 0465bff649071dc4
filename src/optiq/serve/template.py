"""Chat templates in a sandbox: programs of strangers that turn a conversation into text. Knows no tokens and no protocol."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from optiq.errors import ModelError
from optiq.models.chat import TEMPLATE_FAILURES


class ChatTemplate:
    """A model's chat template.

    Args:
        text: Jinja; not empty.
        tokens: names that templates read, such as `bos_token`, with their texts.

    Raises:
        ModelError: it is no valid template.
    """

    def __init__(self, text: str, tokens: Mapping[str, str]) -> None:
        self.text = text
        self._tokens = dict(tokens)
        try:
            self._template = compiled(text)
        except TEMPLATE_FAILURES as error:
            raise ModelError(f"the chat template cannot be read: {error}; mend the model's chat_template.jinja") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        open_reply: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as text.

        Args:
            messages: in order, as the OpenAI API has them, arguments of calls as mappings.
            tools: as in the OpenAI API.
            open_reply: end with the beginning of the assistant's turn.
            options: further names that the template may read, such as `enable_thinking`.

        Raises:
            ModelError: the template refuses this conversation.
        """
        values = {**(options or {}), **self._tokens, "messages": list(messages), "add_generation_prompt": open_reply}
        values["tools"] = list(tools) or None
        try:
            return self._template.render(**values)
        except TEMPLATE_FAILURES as error:
            raise ModelError(f"the chat template refuses this conversation: {str(error) or type(error).__name__}") from error


@lru_cache(maxsize=32)
def compiled(text: str) -> Template:
    """A template, set up as the transformers library does for chat templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(text)


class _Generation(Extension):
    """`{% generation %}` marks what training counts; what stands in it is written as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)

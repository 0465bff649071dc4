"""Calls of tools in the text of a reply: the table of formats. One file and one line in the table make a new one."""

from __future__ import annotations

from optiq.registry import Table
from optiq.serve.parse.tools import hermes, mistral, pythonic, qwen_xml
from optiq.serve.parse.tools.parser import Format

FORMATS: Table[Format] = Table("format of tool calls")
FORMATS.add("qwen-xml", Format((qwen_xml.OPEN, qwen_xml.FUNCTION), qwen_xml.read))
FORMATS.add("hermes", Format((hermes.OPEN,), hermes.read))
FORMATS.add("mistral", Format((mistral.OPEN,), mistral.read, new_id=mistral.new_id))
FORMATS.add("pythonic", Format(pythonic.OPENERS, pythonic.read, line_openers=("[",)))

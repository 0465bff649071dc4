"""The template decides the format of tool calls: real templates, and small ones of other families."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optiq.serve.parse.tools.detect import detect

OPENED = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
# The calls of a turn, in a template that writes nothing else of interest.
TURN = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{% set call = call.function %}CALL{% endfor %}<|end|>{% endfor %}" + OPENED
)
HERMES = TURN.replace(
    "CALL", '<tool_call>\n{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}\n</tool_call>'
)
MISTRAL = TURN.replace("CALL", "[TOOL_CALLS]{{ call.name }}[ARGS]{{ call.arguments | tojson }}")
MISTRAL_ARRAY = """{{ bos_token }}{% for message in messages %}{% if message.role == "user" %}
[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS][INST] {{ message.content }}[/INST]{% elif message.tool_calls %}
{% for call in message.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception("ids have nine characters") }}{% endif %}
[TOOL_CALLS] [{{ call.function | tojson }}]{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"""
PYTHONIC = """{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if message.tool_calls %}[{% for call in message.tool_calls %}{{ call.function.name }}(
{%- for name, value in call.function.arguments.items() %}{{ name }}=QUOTE{{ "%s" | format(value) }}QUOTE
{%- if not loop.last %}, {% endif %}
{%- endfor %}){% if not loop.last %}, {% endif %}{% endfor %}]{% else %}{{ message.content }}{% endif %}<|eot_id|>{% endfor %}
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
TEXT_ARGUMENTS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments + "" }}}</tool_call>'
    "{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "format"),
    [
        (HERMES, "hermes"),
        (MISTRAL, "mistral"),
        (MISTRAL_ARRAY, "mistral"),
        (PYTHONIC.replace("QUOTE", ""), "pythonic"),
        (PYTHONIC.replace("QUOTE", '"'), "pythonic"),
        (TEXT_ARGUMENTS, "hermes"),  # refuses mappings, takes JSON text
        ("{% generation %}" + HERMES + "{% endgeneration %}", "hermes"),
        (TURN.replace("CALL", "[{{ call.name }}(days={{ call.arguments.days }})]"), "pythonic"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{# <tool_call>\n<function= #}{{ messages[0].content }} <tool_call>", None),  # the words alone say nothing
        (
            TURN.replace("CALL", '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}'),
            None,
        ),  # a format nobody knows
        ("{% for", None),
        ("{{ messages[0] }}" + "{% if 1 %}" * 5000, None),
        ("{{ " + "(" * 5000, None),
        ("{{ 1 // 0 }}", None),
        ("{% for i in range(10 ** 9) %}{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("{{ ''.__class__.__mro__ }}", None),
        ("", None),
    ],
)
def test_small_templates(template: str, format: str | None) -> None:
    assert detect(template) == format


def test_the_embedded_model(tiny_model: Path) -> None:
    assert detect((tiny_model / "chat_template.jinja").read_text()) == "qwen-xml"


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("Qwen3.5-4B", "qwen-xml"),
        ("Qwen3-Coder", "qwen-xml"),
        ("Qwen-Qwen3-0.6B", "hermes"),
        ("Qwen-Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen-QwQ-32B", "hermes"),
        ("qwen3_nonthinking", "hermes"),
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "hermes"),
    ],
)
def test_real_templates(shared: Path, name: str, format: str) -> None:
    assert detect((shared / "data" / "qwen" / "templates" / f"{name}.jinja").read_text()) == format


def test_the_real_file_that_says_something_else_is_not_asked(shared: Path) -> None:
    folder = shared / "data" / "qwen" / "qwen3_5"
    assert json.loads((folder / "tokenizer_config.json").read_text())["tool_parser_type"] == "json_tools"
    assert detect((folder / "chat_template.jinja").read_text()) == "qwen-xml"


def test_the_parsers_need_no_mlx() -> None:
    code = "import sys, optiq.serve.parse.output, optiq.serve.parse.tools.detect; "
    code += "print([name for name in ('mlx', 'mlx.core', 'numpy', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

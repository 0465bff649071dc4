"""The table of families: who belongs to which, what is recommended, and that templates are as the table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from optiq.errors import InputError
from optiq.models.families import FAMILIES, USES, Quirks, family_of, preset
from optiq.models.thinking import tags_of

SMALL, LARGE = {"model_type": "qwen3_5_text", "hidden_size": 1024}, {"model_type": "qwen3_5", "hidden_size": 2560}
TEMPLATES = {"qwen3.5-small": "Qwen3.5-4B", "qwen3.5": "Qwen3.5-4B", "qwen3": "Qwen-Qwen3-0.6B"}
ASK, REPLY = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nOne."}


def test_families_by_config() -> None:
    assert family_of(SMALL) == "qwen3.5-small" and family_of(LARGE) == "qwen3.5"
    assert family_of({"model_type": "qwen3_5_moe_text", "hidden_size": 2048}) == "qwen3.5"
    assert family_of({"model_type": "llama", "hidden_size": 2048}) is None and preset(None, True) == {}


def test_the_mode_chooses_the_preset() -> None:
    assert preset("qwen3.5", True)["temperature"] == 1.0 and preset("qwen3.5", False)["temperature"] == 0.7
    assert preset("qwen3.5-small", False)["presence_penalty"] == 2.0


def test_a_use_comes_before_the_mode() -> None:
    for thinking in (True, False):
        assert preset("qwen3.5", thinking, "reasoning") == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
        assert preset("qwen3.5", thinking, "chat") == {"temperature": 0.7, "top_p": 0.9}
        assert preset("qwen3.5", thinking, "deterministic") == {"temperature": 0.0}
    with pytest.raises(InputError, match="--preset is chat, and this model is of no known family .*qwen3.5.*; give --temp"):
        preset(None, True, "chat")


def test_every_family_has_every_use() -> None:
    assert all(tuple(family.uses) == USES for _, family in FAMILIES.items())


def _renders(template: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return str(render_jinja_template([messages], chat_template=template, **options)[0][0])
    except Exception:  # whatever a template's own refusal looks like
        return None


@pytest.mark.parametrize("name", FAMILIES)
def test_templates_have_the_tags_and_quirks_of_the_table(shared: Path, name: str) -> None:
    template = (shared / "data" / "qwen" / "templates" / f"{TEMPLATES[name]}.jinja").read_text()
    family = FAMILIES[name]
    assert tags_of(template) == family.tags
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    history = _renders(template, [ASK, REPLY, ASK])
    assert history is not None
    assert family.quirks == Quirks(
        system_first=_renders(template, [ASK, {"role": "system", "content": "Be brief."}, ASK]) is None,
        question_needed=_renders(template, [{"role": "system", "content": "Be brief."}]) is None,
        argument_mappings=_renders(template, [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]) is None,
        drops_reasoning="Hm." not in history,
    )


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3"])
def test_templates_think_by_default_where_the_table_says_so(shared: Path, name: str) -> None:
    template = (shared / "data" / "qwen" / "templates" / f"{TEMPLATES[name]}.jinja").read_text()
    default, without = (
        _renders(template, [ASK], add_generation_prompt=True, **options) for options in ({}, {"enable_thinking": False})
    )
    assert (default != without) == FAMILIES[name].thinks

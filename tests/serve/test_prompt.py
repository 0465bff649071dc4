"""Prompts: forms that templates take, what later prompts share, a sandbox around templates."""

from __future__ import annotations

from typing import Any

import pytest

from optiq.errors import InputError, ModelError
from optiq.serve.prompt import Prompter
from optiq.serve.template import ChatTemplate
from serve_locally import TINY, tokenizer_of

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
TEXT_ARGUMENTS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}{% endfor %}"
    "{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of()


@pytest.fixture(scope="module")
def tiny(tokenizer: Any) -> Prompter:
    return Prompter(tokenizer, (TINY / "chat_template.jinja").read_text())


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TALK = [
    message("system", "Be kind."),
    message("user", "One?"),
    message("assistant", "", reasoning_content="Hm.", tool_calls=[CALL]),
    message("tool", "result", tool_call_id="c1"),
    message("assistant", "Answer."),
    message("user", "Two?"),
]


def test_a_prompt_is_what_the_template_of_the_model_writes(tiny: Prompter, tokenizer: Any) -> None:
    talk = [message("user", "Hello"), message("assistant", "Hi."), message("user", "And?")]
    prompt = tiny.chat(talk, [TOOL])
    assert prompt.text == tokenizer.apply_chat_template(talk, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert list(prompt.ids) == tokenizer.encode(prompt.text, add_special_tokens=False)


def test_cuts_are_beginnings_of_what_comes_next(tiny: Prompter) -> None:
    prompt = tiny.chat(TALK, [TOOL])
    beginnings = [tiny._tokenizer.decode(prompt.ids[:cut]) for cut in prompt.cuts]
    assert any(text.endswith("Be kind.<|im_end|>\n<|im_start|>user\n") for text in beginnings)
    assert beginnings[-1].endswith("Two?<|im_end|>\n<|im_start|>assistant\n") or beginnings[-1].endswith("Two?<|im_end|>\n")
    following = tiny.chat([*TALK, message("assistant", "Yes."), message("user", "Three?")], [TOOL])
    assert following.ids[: prompt.cuts[-1]] == prompt.ids[: prompt.cuts[-1]]
    other = tiny.chat([TALK[0], message("user", "Something else")], [TOOL])
    assert other.ids[: prompt.cuts[0]] == prompt.ids[: prompt.cuts[0]]


def test_reasoning(tiny: Prompter) -> None:
    question = [message("user", "Q")]
    assert tiny.chat(question).thinks and tiny.chat(question).shape.opened
    plain = tiny.chat(question, options={"enable_thinking": False})
    assert not plain.thinks and not plain.shape.opened
    begun = tiny.chat(question, prefill="The answer")
    assert begun.text.endswith("</think>\n\nThe answer") and not begun.thinks


def test_a_later_system_message_stays_in_its_place(tiny: Prompter, tokenizer: Any) -> None:
    talk = [*TALK, message("system", "Now be brief."), message("user", "Three?")]
    first, later = tiny.chat(TALK, [TOOL]), tiny.chat(talk, [TOOL])
    assert "<|im_start|>user\nNow be brief.<|im_end|>" in later.text
    assert later.ids[: first.cuts[0]] == first.ids[: first.cuts[0]]
    kept = Prompter(tokenizer, CHATML).chat([talk[0], talk[1], *talk[-2:]])
    assert "<|user|>One?\n<|system|>Now be brief.\n" in kept.text


def test_leading_instructions_are_one(tiny: Prompter) -> None:
    talk = [message("system", "A."), message("developer", "B."), message("user", "Q")]
    assert tiny.chat(talk).text.startswith("<|im_start|>system\nA.\n\nB.<|im_end|>\n<|im_start|>user")
    assert "<|im_start|>user\n<|im_end|>" in tiny.chat(talk[:2]).text


def test_templates_that_want_roles_to_take_turns(tokenizer: Any) -> None:
    prompter = Prompter(tokenizer, ALTERNATING)
    talk = [message("system", "S."), message("user", "A"), message("user", "B"), message("assistant", "C"), message("user", "D")]
    assert prompter.chat(talk).text == "[user]S.\n\nA\n\nB[assistant]C[user]D"
    assert prompter.chat(talk[1:]).text == "[user]A\n\nB[assistant]C[user]D"
    with pytest.raises(ModelError, match="roles must alternate"):
        prompter.chat([message("assistant", "x"), message("tool", "y")])


def test_arguments_come_as_the_template_wants_them(tiny: Prompter, tokenizer: Any) -> None:
    assert "<parameter=a>\nb\n</parameter>" in tiny.chat(TALK, [TOOL]).text
    assert '{"a": "b"}' in Prompter(tokenizer, TEXT_ARGUMENTS).chat(TALK).text
    broken = {**CALL, "function": {"name": "f", "arguments": '{"a": '}}
    talk = [message("user", "Q"), message("assistant", "", tool_calls=[broken]), message("tool", "no", tool_call_id="c1")]
    assert '{"a": ' in tiny.chat(talk, [TOOL]).text


def test_what_cannot_be_written(tokenizer: Any, tiny: Prompter) -> None:
    with pytest.raises(InputError, match="no chat template"):
        Prompter(tokenizer, "").chat([message("user", "x")])
    with pytest.raises(InputError, match="messages is empty"):
        tiny.chat([])
    with pytest.raises(InputError, match="prompt is empty"):
        tiny.plain("")
    with pytest.raises(ModelError, match="cannot be read"):
        Prompter(tokenizer, "{% if %}")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_templates_run_in_a_sandbox(attack: str) -> None:
    with pytest.raises(ModelError, match="refuses"):
        ChatTemplate(attack, {}).render([message("user", "x")])


def test_options_cannot_take_the_place_of_the_conversation() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ bos_token }}{{ extra }}", {"bos_token": "B"})
    options = {"messages": [message("user", "other")], "bos_token": "X", "extra": "!"}
    assert template.render([message("user", "mine")], options=options) == "mineB!"


def test_results_have_the_name_of_their_tool(tokenizer: Any) -> None:
    template = "{% for m in messages %}{% if m.role == 'tool' %}{{ m.name }}={{ m.content }}{% endif %}{% endfor %}"
    assert Prompter(tokenizer, template).chat(TALK).text == "f=result"

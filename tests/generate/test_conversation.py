"""Prompts of a conversation with a real template: modes, openings, what stays the same from turn to turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from optiq.errors import InputError, ModelError
from optiq.generate.conversation import Conversation, plain


@pytest.fixture
def tokenizer(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


@pytest.mark.parametrize(
    ("asked", "thinking", "opening", "end"),
    [(None, True, "<think>\n", "<think>\n"), (True, True, "<think>\n", "<think>\n"), (False, False, "", "</think>\n\n")],
)
def test_modes(tokenizer: Any, asked: bool | None, thinking: bool, opening: str, end: str) -> None:
    prompt = Conversation(tokenizer, "Be brief.", asked).ask("Hello")
    assert (prompt.thinking, prompt.opening) == (thinking, opening)
    text = tokenizer.decode(prompt.ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>") and text.endswith(end)
    assert tokenizer.decode(prompt.ids[: prompt.stable]).endswith("Hello<|im_end|>\n")


@pytest.mark.parametrize("asked", [None, False])
def test_a_prompt_goes_on_from_the_stable_part_of_the_one_before(tokenizer: Any, asked: bool | None) -> None:
    conversation = Conversation(tokenizer, thinking=asked)
    first = conversation.ask("One?")
    assert conversation.ask("One?") == first, "asking remembers nothing"
    conversation.answered("One?", "Some reasons.\n</think>\n\nYes." if asked is None else "Yes.", first)
    second = conversation.ask("Two?")
    assert second.ids[: first.stable] == first.ids[: first.stable] and second.stable > first.stable
    text = tokenizer.decode(second.ids)
    assert "Yes.<|im_end|>" in text and "Some reasons" not in text


def test_a_reply_that_never_came_to_an_answer_is_no_answer(tokenizer: Any) -> None:
    conversation = Conversation(tokenizer)
    conversation.answered("One?", "I wonder", conversation.ask("One?"))
    assert conversation.messages[-1] == {"role": "assistant", "content": "", "reasoning_content": "I wonder"}
    assert "I wonder" not in tokenizer.decode(conversation.ask("Two?").ids)


def test_the_switch(tokenizer: Any) -> None:
    assert Conversation(tokenizer).has_switch
    template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    rigid = _WithTemplate(tokenizer, template)
    assert not Conversation(rigid).has_switch
    prompt = Conversation(rigid).ask("a")
    assert prompt.thinking is False and rigid.decode(prompt.ids) == "a|"


def test_a_template_that_leaves_the_opening_to_the_model_is_known_by_its_switch(tokenizer: Any) -> None:
    template = "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    lazy = _WithTemplate(tokenizer, template)
    assert Conversation(lazy).ask("a").thinking and not Conversation(lazy).ask("a").opening
    assert not Conversation(lazy, thinking=False).ask("a").thinking


def test_refusals(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"the prompt is empty \(2 characters\)"):
        Conversation(tokenizer).ask(" \n")
    with pytest.raises(InputError, match=r"the prompt is empty \(0 characters\)"):
        plain(tokenizer, "")
    with pytest.raises(InputError, match="this model has no chat template; use --raw"):
        Conversation(SimpleNamespace(has_chat_template=False)).ask("a")
    stern = _WithTemplate(tokenizer, "{{ raise_exception('No system message.') }}")
    with pytest.raises(ModelError, match="the chat template refuses this conversation: No system message."):
        Conversation(stern).ask("a")


def test_plain_text_has_the_tokenizers_beginning() -> None:
    class Beginning:
        bos_token = "<s>"

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [1, len(text)] if add_special_tokens else [len(text)]

    assert plain(Beginning(), "abc").ids == [1, 3] and plain(Beginning(), "<s>abc").ids == [6]


class _WithTemplate:
    """The tokenizer with another chat template, for one call at a time."""

    has_chat_template = True
    _chat_template = None

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._inner, self._template = tokenizer._tokenizer, template
        self._tokenizer = self

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return str(self._inner.apply_chat_template(messages, chat_template=self._template, **options))

    def encode(self, text: str, **options: Any) -> list[int]:
        return list(self._inner.encode(text, **options))

    def decode(self, ids: list[int]) -> str:
        return str(self._inner.decode(ids))

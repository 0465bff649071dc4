"""Which tokens carry loss."""

from __future__ import annotations

from typing import Any

import pytest

from lora_training import TINY, chat
from optiq.errors import InputError
from optiq.lora.data import Encoder, Sample
from optiq.lora.records import Record
from optiq.models.chat import ChatTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return load_tokenizer(TINY)


def samples(
    tokenizer: ChatTokenizer, fields: dict[str, Any], kind: str = "chat", length: int = 512, **options: Any
) -> list[Sample]:
    return Encoder(tokenizer, length, **options).samples(Record("a.jsonl:1", kind, fields))


def learned(tokenizer: ChatTokenizer, sample: Sample) -> str:
    return tokenizer.decode([token for token, loss in zip(sample.tokens, sample.loss, strict=True) if loss])


def test_a_reply_carries_loss_and_its_prompt_does_not(tokenizer: ChatTokenizer) -> None:
    (sample,) = samples(tokenizer, chat("Yes."))
    assert learned(tokenizer, sample) == "Yes.<|im_end|>"
    prompt = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(sample.tokens) == prompt + "Yes.<|im_end|>"
    assert list(sample.tokens) == [*tokenizer.encode(prompt), *tokenizer.encode("Yes.<|im_end|>")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_is_learned_where_there_is_some(tokenizer: ChatTokenizer, key: str) -> None:
    fields = chat("Yes.")
    fields["messages"][1][key] = "Let me see."
    (sample,) = samples(tokenizer, fields)
    assert learned(tokenizer, sample) == "Let me see.\n</think>\n\nYes.<|im_end|>"


def test_each_reply_is_learned_in_the_context_that_it_had(tokenizer: ChatTokenizer) -> None:
    fields = {"messages": [*chat("One.")["messages"], *chat("Two.", "More?")["messages"]]}
    fields["messages"][1]["reasoning_content"] = "hm"
    first, second = samples(tokenizer, fields)
    assert learned(tokenizer, first) == "hm\n</think>\n\nOne.<|im_end|>"
    assert learned(tokenizer, second) == "Two.<|im_end|>"
    assert "hm" not in tokenizer.decode(second.tokens) and "One." in tokenizer.decode(second.tokens)
    (last,) = samples(tokenizer, fields, all_turns="off")
    assert last == second


def test_replies_stay_in_one_sample_where_the_template_writes_them_alike(tokenizer: ChatTokenizer) -> None:
    class Plain(ChatTokenizer):
        def render(self, messages: Any, tools: Any, add_generation_prompt: bool = False, **options: Any) -> str:
            text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
            return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    fields = {"messages": [*chat("One.")["messages"], *chat("Two.", "More?")["messages"]]}
    (sample,) = samples(Plain(tokenizer._tokenizer), fields)
    assert learned(tokenizer, sample) == "One.<|im_end|>Two.<|im_end|>"


def test_calls_of_tools_are_learned(tokenizer: ChatTokenizer) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": '{"place": "sky"}'}}
    fields = {"messages": [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    (sample,) = samples(tokenizer, {**fields, "tools": [{"type": "function", "function": {"name": "look"}}]})
    assert "<function=look>\n<parameter=place>\nsky\n" in learned(tokenizer, sample)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("text", {"text": "The sea"}, " sea<|im_end|>"),
        ("completion", {"prompt": "Who?", "completion": "Me."}, "Me.<|im_end|>"),
    ],
)
def test_other_kinds(tokenizer: ChatTokenizer, kind: str, fields: dict[str, Any], expected: str) -> None:
    (sample,) = samples(tokenizer, fields, kind)
    assert learned(tokenizer, sample).endswith(expected)
    assert not sample.loss[0]


def test_a_preference_has_one_prompt_and_two_replies(tokenizer: ChatTokenizer) -> None:
    fields = {"prompt": "Who?", "chosen": "Me.", "rejected": [{"role": "assistant", "content": "You."}]}
    chosen, rejected = samples(tokenizer, fields, "preference")
    assert [learned(tokenizer, s) for s in (chosen, rejected)] == ["Me.<|im_end|>", "You.<|im_end|>"]


def test_the_end_is_cut_off_and_counted(tokenizer: ChatTokenizer) -> None:
    (whole,) = samples(tokenizer, chat("It is a very long story about the sea."))
    (cut,) = samples(tokenizer, chat("It is a very long story about the sea."), length=len(whole.tokens) - 3)
    assert cut.tokens == whole.tokens[:-3] and cut.cut == 3
    assert samples(tokenizer, chat("It is"), length=5) == []


def test_prompts_carry_loss_on_request(tokenizer: ChatTokenizer) -> None:
    (sample,) = samples(tokenizer, chat("Yes."), mask_prompt=False)
    assert all(sample.loss[1:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "a.jsonl:1: no message of the assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "a.jsonl:1: the chat template refuses"),
    ],
)
def test_what_no_model_could_learn_is_refused(tokenizer: ChatTokenizer, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        samples(tokenizer, fields)

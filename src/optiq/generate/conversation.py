"""A conversation: messages, the prompt that a model's template makes of them, and what of it stays the same next time.

Templates write the last question differently from earlier ones (an open reply, the reasoning left out of replies of the
past), so a prompt rarely begins with all of the one before it. What does stay is everything up to the opened reply:
its length goes along with the prompt, and caches that cannot be cut are marked there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optiq.errors import InputError
from optiq.models.chat import prompt_text
from optiq.models.thinking import KNOWN


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Args:
        ids: token ids.
        stable: how many of them the prompt of the next turn will begin with.
        thinking: whether the model thinks before it answers.
        opening: what the template has written of the reply's reasoning, to be shown before it: the opening tag, or "".
    """

    ids: list[int]
    stable: int = 0
    thinking: bool = False
    opening: str = ""


def plain(tokenizer: Any, text: str) -> Prompt:
    """A text to be continued, without a template; the tokenizer's own beginning-of-text sign goes before it.

    Raises:
        InputError: the text is empty.
    """
    if not text:
        raise InputError("the prompt is empty (0 characters), expected a text")
    begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return Prompt([int(token) for token in tokenizer.encode(text, add_special_tokens=not begun)])


@dataclass
class Conversation:
    """Messages in order, and the template's thinking mode.

    Args:
        tokenizer: as `optiq.models.load.load` gives it.
        system: the first message, or "" for none.
        thinking: True or False to ask for a mode, None for the template's own default.
    """

    tokenizer: Any
    system: str = ""
    thinking: bool | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.system:
            self.messages.append({"role": "system", "content": self.system})

    def ask(self, text: str) -> Prompt:
        """The prompt for the next message of the user, which is not remembered before `answered`.

        Raises:
            InputError: the message is empty, or the model has no template.
            ModelError: the template refuses the conversation.
        """
        if not text.strip():
            raise InputError(f"the prompt is empty ({len(text)} characters), expected a text")
        messages = [*self.messages, {"role": "user", "content": text}]
        whole = prompt_text(self.tokenizer, messages, self.thinking)
        history = self._ids(prompt_text(self.tokenizer, messages, self.thinking, open_reply=False))
        ids = self._ids(whole)
        stable = next((n for n, (a, b) in enumerate(zip(ids, history, strict=False)) if a != b), min(len(ids), len(history)))
        opening = next((whole[whole.rfind(tags.open) :] for tags in KNOWN if tags.opened_by(whole)), "")
        return Prompt(ids, stable, self._thinks(messages, whole, opening), opening)

    def answered(self, question: str, reply: str, prompt: Prompt) -> None:
        """Remember a question and the model's reply to it (without the prompt's opening).

        A reply that ended while the model was still thinking is kept as reasoning, for it holds no answer yet.
        """
        self.messages.append({"role": "user", "content": question})
        message = {"role": "assistant", "content": reply}
        if any(tags.opened_by(prompt.opening) and tags.close not in reply for tags in KNOWN):
            message = {"role": "assistant", "content": "", "reasoning_content": reply}
        self.messages.append(message)

    @property
    def has_switch(self) -> bool:
        """Whether the template writes the two thinking modes differently."""
        question = [{"role": "user", "content": "?"}]
        return prompt_text(self.tokenizer, question, True) != prompt_text(self.tokenizer, question, False)

    def _thinks(self, messages: list[dict[str, Any]], whole: str, opening: str) -> bool:
        """The mode that this prompt puts the model in.

        Templates differ: one opens the reasoning, another leaves that to the model and closes it where it is not wanted.
        What differs from the prompt with thinking switched off is therefore taken to think.
        """
        return bool(opening) or whole != prompt_text(self.tokenizer, messages, False)

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

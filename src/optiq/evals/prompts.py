"""Samples as requests: written with a model's chat template, within its context. Needs a tokenizer, no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optiq.errors import InputError
from optiq.evals.task import Sample
from optiq.generate.sampling import Sampling
from optiq.kv.options import Maker
from optiq.models.chat import prompt_text
from optiq.models.generation import context_length, stop_ids
from optiq.models.load import load_tokenizer
from optiq.serve.parse.output import Shape
from optiq.serve.request import FULL_PRECISION, Request

CHOICE_BIAS = 1e4  # lifts the choices over every other token; float32 keeps 0.001 of their differences
THINKING_TOKENS = 4096


@dataclass(frozen=True)
class Settings:
    """How replies are asked for.

    Args:
        thinking: let the model reason before it answers; the reference protocol does not.
        thinking_tokens: added to `max_tokens` of samples then.
        caches: how keys and values are kept.
        ahead: requests that are handed to the engine before their turn.
    """

    thinking: bool = False
    thinking_tokens: int = THINKING_TOKENS
    caches: Maker = FULL_PRECISION
    ahead: int = 64


@dataclass(frozen=True)
class Prompts:
    """Writes requests for one model.

    Args:
        tokenizer: as `optiq.models.load.load` gives it.
        stops: token ids that end a reply.
        settings: how replies are asked for.
        context: tokens that the model takes, prompt and reply together; None where nobody says.
    """

    tokenizer: Any
    stops: frozenset[int]
    settings: Settings = Settings()
    context: int | None = None

    def request(self, sample: Sample) -> tuple[Request, Shape]:
        """What an engine is asked for, and how its reply is read."""
        bias = dict.fromkeys(self.choices(sample), CHOICE_BIAS)
        if sample.messages:
            thinking = self.settings.thinking
            text = prompt_text(self.tokenizer, list(sample.messages), thinking, tools=sample.tools)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            shape = Shape.of(str(getattr(self.tokenizer, "chat_template", None) or ""), text, sample.tools)
        else:
            thinking, shape = False, Shape()
            ids = self.tokenizer.encode(sample.text)
        most = 1 if sample.choices else sample.max_tokens + (self.settings.thinking_tokens if thinking else 0)
        prompt = tuple(int(token) for token in ids)
        return Request(prompt, Sampling(logit_bias=bias), most, self.stops, caches=self.settings.caches), shape

    def choices(self, sample: Sample) -> list[int]:
        """The token that each choice begins with.

        Raises:
            InputError: two begin with the same one.
        """
        found = [int(self.tokenizer.encode(choice, add_special_tokens=False)[0]) for choice in sample.choices]
        if len(set(found)) != len(found):
            raise InputError(
                f"{sample.id}: two of the choices {sample.choices} begin with one token of this model; no logits tell"
            )
        return found

    def takes(self, sample: Sample) -> bool:
        """Whether the sample's prompt and reply lie within the model's context."""
        if self.context is None:
            return True
        asked = self.request(sample)[0]
        return len(asked.prompt) + asked.max_tokens <= self.context

    def fitted(self, sample: Sample) -> Sample:
        """The sample with the first of its texts that the model takes; with the last one where it takes none."""
        while sample.shorter and not self.takes(sample):
            sample = replace(sample, text=sample.shorter[0], shorter=sample.shorter[1:])
        return sample


def open_prompts(path: Path, settings: Settings) -> Prompts:
    """What writes requests for the model of a directory.

    Raises:
        ModelError: its tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(path)
    return Prompts(tokenizer, stop_ids(path, tokenizer), settings, context_length(path))


def all_take(models: list[Prompts]) -> Callable[[Sample], bool]:
    """Whether every one of several models takes a sample."""
    return lambda sample: all(model.takes(sample) for model in models)

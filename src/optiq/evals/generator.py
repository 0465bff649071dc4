"""Who answers samples: the batching engine of this machine. `Generator` is the interface; `served` has the one over HTTP.

`EngineGenerator` writes prompts with the model's chat template, keeps the engine filled, and reads replies as the server does
(reasoning aside, calls parsed), so that what is scored is what a client would get. Greedy, so a reply depends on its prompt
alone and not on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optiq.errors import InputError, ResourceError
from optiq.evals.task import Answer, Call, Sample
from optiq.generate.sampling import Sampling
from optiq.kv.options import Maker
from optiq.models.chat import prompt_text
from optiq.models.generation import stop_ids
from optiq.models.hub import resolve
from optiq.models.load import load
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.parse.deltas import gather
from optiq.serve.parse.output import Output, Shape
from optiq.serve.request import FULL_PRECISION, Finish, Finished, Request, Serving, Token
from optiq.serve.scheduler import Policy

CHOICE_BIAS = 1e4  # lifts the choices over every other token; float32 keeps 0.001 of their differences
THINKING_TOKENS = 4096


class Generator(Protocol):
    """Answers samples, in whatever order it likes."""

    def answers(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answer]]:
        """Every sample with its answer, each as soon as it is there.

        Raises:
            OptiqError: one of them cannot be answered.
        """


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


class EngineGenerator:
    """Answers from an engine.

    Args:
        engine: one that nobody else uses meanwhile.
        stops: token ids that end a reply.
        settings: how replies are asked for.
    """

    def __init__(self, engine: Serving, stops: frozenset[int], settings: Settings | None = None) -> None:
        self.engine, self.stops, self.settings = engine, stops, settings or Settings()
        self._tokenizer = engine.tokenizer
        self._template = str(getattr(self._tokenizer, "chat_template", None) or "")

    def answers(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answer]]:
        """See `Generator`."""
        for sample, shape, tokens, end in self._replies(samples):
            yield sample, self._answer(sample, shape, tokens, end)

    def tokens(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        """The token ids of every reply by its sample's id, reasoning and calls included; what ends a reply is not among them.

        Raises:
            ResourceError: the engine failed.
        """
        found = {}
        for sample, _, tokens, end in self._replies(samples):
            _check(sample, end)
            found[sample.id] = [token.id for token in tokens if token.id not in self.stops]
        return found

    def _replies(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Shape, list[Token], Finished]]:
        """Every sample with what its reply is made of, in the order in which they end."""
        waiting = list(reversed(samples))
        running: dict[str, tuple[Sample, Shape, list[Token]]] = {}
        while waiting or running:
            while waiting and len(running) < self.settings.ahead:
                sample = waiting.pop()
                request, shape = self.request(sample)
                running[self.engine.submit(request)] = (sample, shape, [])
            for event in self.engine.step():
                if isinstance(event, Token):
                    running[event.request][2].append(event)
                elif isinstance(event, Finished):
                    sample, shape, tokens = running.pop(event.request)
                    yield sample, shape, tokens, event

    def request(self, sample: Sample) -> tuple[Request, Shape]:
        """What the engine is asked for, and how its reply is read."""
        bias = dict.fromkeys(self._choices(sample), CHOICE_BIAS)
        if sample.messages:
            thinking = self.settings.thinking
            text = prompt_text(self._tokenizer, list(sample.messages), thinking, tools=sample.tools)
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            shape = Shape.of(self._template, text, sample.tools)
        else:
            thinking, text, shape = False, sample.text, Shape()
            ids = self._tokenizer.encode(text)
        most = 1 if sample.choices else sample.max_tokens + (self.settings.thinking_tokens if thinking else 0)
        prompt = tuple(int(token) for token in ids)
        return Request(prompt, Sampling(logit_bias=bias), most, self.stops, caches=self.settings.caches), shape

    def _choices(self, sample: Sample) -> list[int]:
        """The token that each choice begins with."""
        found = [int(self._tokenizer.encode(choice, add_special_tokens=False)[0]) for choice in sample.choices]
        if len(set(found)) != len(found):
            raise InputError(
                f"{sample.id}: two of the choices {sample.choices} begin with one token of this model; no logits tell"
            )
        return found

    def _answer(self, sample: Sample, shape: Shape, tokens: Sequence[Token], end: Finished) -> Answer:
        _check(sample, end)
        if sample.choices:
            return Answer(sample.choices[self._choices(sample).index(tokens[0].id)], tokens=1)
        output = Output(shape)
        text = "".join(token.text for token in tokens) + end.text
        message = gather(output.add(text) + output.finish())
        calls = tuple(Call(call.name, call.arguments) for call in message.calls)
        return Answer(message.content, calls, end.usage.tokens, str(end.finish))


def _check(sample: Sample, end: Finished) -> None:
    if end.finish is Finish.FAILED:
        raise ResourceError(f"{sample.id}: the engine failed ({end.error}); finished samples are kept, run again")


def open_generator(model: str, settings: Settings, rows: int = 16) -> EngineGenerator:
    """An engine for a model directory or hub id, ready to answer.

    Args:
        model: directory or hub id.
        settings: how replies are asked for.
        rows: requests that run at once.

    Raises:
        OptiqError: the model cannot be loaded.
    """
    path: Path = resolve(model)
    loaded: tuple[Any, Any] = load(path)
    settings.caches.check(loaded[0])
    engine = Engine(*loaded, EngineOptions(policy=Policy(max_rows=rows)))
    return EngineGenerator(engine, stop_ids(path, loaded[1]), settings)

"""Who answers samples: the batching engine of this machine. `Generator` is the interface; `served` has the one over HTTP.

`EngineGenerator` keeps the engine filled with requests (`evals/prompts.py` writes them) and reads replies as the server does
(reasoning aside, calls parsed), so that what is scored is what a client would get. Greedy, so a reply depends on its prompt
alone and not on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from optiq.errors import ResourceError
from optiq.evals.prompts import Prompts, Settings
from optiq.evals.task import Answer, Call, Sample
from optiq.models.generation import context_length, stop_ids
from optiq.models.hub import resolve
from optiq.models.load import load
from optiq.serve.engine import Engine, EngineOptions
from optiq.serve.parse.deltas import gather
from optiq.serve.parse.output import Output, Shape
from optiq.serve.request import Finish, Finished, Serving, Token
from optiq.serve.scheduler import Policy


class Generator(Protocol):
    """Answers samples, in whatever order it likes."""

    def answers(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answer]]:
        """Every sample as it was asked (perhaps with a shorter text) with its answer, each as soon as it is there.

        Raises:
            OptiqError: one of them cannot be answered.
        """


class EngineGenerator:
    """Answers from an engine.

    Args:
        engine: one that nobody else uses meanwhile.
        prompts: of its model.
    """

    def __init__(self, engine: Serving, prompts: Prompts) -> None:
        self.engine, self.prompts = engine, prompts

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
            found[sample.id] = [token.id for token in tokens if token.id not in self.prompts.stops]
        return found

    def _replies(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Shape, list[Token], Finished]]:
        """Every sample with what its reply is made of, in the order in which they end."""
        waiting = list(reversed(samples))
        running: dict[str, tuple[Sample, Shape, list[Token]]] = {}
        while waiting or running:
            while waiting and len(running) < self.prompts.settings.ahead:
                sample = self.prompts.fitted(waiting.pop())
                request, shape = self.prompts.request(sample)
                running[self.engine.submit(request)] = (sample, shape, [])
            for event in self.engine.step():
                if isinstance(event, Token):
                    running[event.request][2].append(event)
                elif isinstance(event, Finished):
                    sample, shape, tokens = running.pop(event.request)
                    yield sample, shape, tokens, event

    def _answer(self, sample: Sample, shape: Shape, tokens: Sequence[Token], end: Finished) -> Answer:
        _check(sample, end)
        if sample.choices:
            return Answer(sample.choices[self.prompts.choices(sample).index(tokens[0].id)], tokens=1)
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
    context = context_length(path)
    engine = Engine(*loaded, EngineOptions(policy=Policy(max_rows=rows), context=context or 0))
    return EngineGenerator(engine, Prompts(loaded[1], stop_ids(path, loaded[1]), settings, context))

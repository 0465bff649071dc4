"""An engine without a model: it says what its script says, one token per row and step, through the same interface. For tests of
protocols. Pure Python.

A script gives the token ids of each reply; text, stops and lengths are as in the real engine. Faults can be scripted too: a
request that fails, a step that raises, steps that take time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optiq.errors import InputError
from optiq.serve.job import Job
from optiq.serve.request import Event, Finish, Finished, Load, Progress, Request
from optiq.serve.scheduler import Policy, Scheduler


@dataclass(frozen=True)
class Script:
    """One reply.

    Args:
        ids: its tokens, in order; the last one is repeated where more are asked for.
        error: fail with this line after the tokens, instead.
        crash: raise this from `step` after the tokens, as a broken engine would.
        step_s: seconds that each token takes.
    """

    ids: Sequence[int]
    error: str = ""
    crash: Exception | None = None
    step_s: float = 0.0


class ScriptedEngine:
    """Says what a script says.

    Args:
        tokenizer: decodes the script's ids.
        script: the reply to a request.
        policy: rows and line as in the real engine.
    """

    def __init__(self, tokenizer: Any, script: Callable[[Request], Script], policy: Policy | None = None) -> None:
        self.tokenizer = tokenizer
        self.scheduler = Scheduler(policy or Policy())
        self._script = script
        self._jobs: dict[str, tuple[Job, Script]] = {}
        self._events: list[Event] = []
        self._names = 0
        self._adapters: dict[str, str] = {}

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.scheduler.idle and not self._events

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the mounted adapters, of which nothing is read."""
        return tuple(self._adapters)

    def mount(self, name: str, path: str | os.PathLike[str]) -> None:
        """As `optiq.serve.engine.Engine.mount`."""
        if name in self._adapters:
            raise InputError(f"an adapter {name!r} is mounted already; choose another name")
        self._adapters[name] = os.fspath(path)

    def unmount(self, name: str) -> None:
        """As `optiq.serve.engine.Engine.unmount`."""
        if name not in self._adapters:
            raise InputError(f"no adapter {name!r} is mounted; mounted: {', '.join(self._adapters) or 'none'}")
        del self._adapters[name]

    def submit(self, request: Request, name: str | None = None) -> str:
        """As `optiq.serve.engine.Engine.submit`."""
        self._names += 1
        name = f"request-{self._names}" if name is None else name
        if request.adapter is not None and request.adapter not in self._adapters:
            raise InputError(f"no adapter {request.adapter!r} is mounted; mounted: {', '.join(self._adapters) or 'none'}")
        job = Job(name, request, None, time.perf_counter())
        self.scheduler.submit(name)
        self._jobs[name] = (job, self._script(request))
        return name

    def cancel(self, name: str) -> None:
        """As `optiq.serve.engine.Engine.cancel`."""
        if name in self._jobs:
            self._close(self._jobs[name][0].end(Finish.CANCELLED))

    def step(self) -> list[Event]:
        """One token for every row; prompts are read at once."""
        while (name := self.scheduler.next_waiting()) is not None:
            job, _ = self._jobs[name]
            self.scheduler.started(name)
            job.started = time.perf_counter()
            job.usage = replace(job.usage, queue_s=job.started - job.submitted)
            job.begin_text(self.tokenizer)
            self.scheduler.ready(name)
            self._events.append(Progress(name, len(job.request.prompt), len(job.request.prompt)))
        for name in tuple(self.scheduler.decoding):
            self._draw(*self._jobs[name])
        events, self._events = self._events, []
        return events

    def load(self) -> Load:
        """Rows only."""
        lists = self.scheduler
        return Load(len(lists.waiting), len(lists.reading), len(lists.decoding), cache_bytes=0, prefix_bytes=0, limit_bytes=0)

    def _draw(self, job: Job, script: Script) -> None:
        time.sleep(script.step_s)
        at = len(job.ids)
        if at >= len(script.ids) and script.crash is not None:
            raise script.crash
        if at >= len(script.ids) and (script.error or not script.ids):
            self._close(job.end(Finish.FAILED, script.error or "the script is empty"))
            return
        told, ended = job.take(script.ids[min(at, len(script.ids) - 1)], time.perf_counter())
        if told is not None:
            self._events.append(told)
        if ended is not None:
            self._close(ended)

    def _close(self, ended: Finished) -> None:
        self.scheduler.ended(ended.request)
        del self._jobs[ended.request]
        self._events.append(ended)

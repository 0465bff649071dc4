"""The engine: requests in, events out, one step at a time. Owns MLX; whoever calls `step` owns the thread.

A step starts what may start, lets every row that has its prompt read draw one token in one forward pass, and reads on at one
prompt for a slice of time (`scheduler`). Prompts begin at the longest prefix that was read before (`prefix`); rows keep caches of
their own kinds and draw with samplers of their own (`rows`), so that a reply depends on nothing else in the batch. A row that
fails ends alone.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from optiq.errors import InputError, OptiqError
from optiq.generate.logprobs import log_probabilities
from optiq.generate.sampler import draw_rows
from optiq.kernels import memory as system
from optiq.kv import pieces
from optiq.kv.options import Maker
from optiq.lora.adapters import load_adapter
from optiq.lora.mounted import Mounted
from optiq.models.caches import cache_arrays, cache_bytes, make_caches
from optiq.models.marks import watch
from optiq.serve import rows
from optiq.serve.admission import Admission
from optiq.serve.grammar import Compiler, State
from optiq.serve.job import Job
from optiq.serve.memory import Budget, Footprint
from optiq.serve.prefix import Piece, PrefixCache
from optiq.serve.reading import Chunk, next_stop, plan_cuts
from optiq.serve.request import Event, Finish, Finished, Load, Logprob, Progress, Request
from optiq.serve.scheduler import GRID, Policy, Scheduler

CLEAR_EVERY = 256  # decoding steps between two returns of MLX's unused buffers


@dataclass(frozen=True)
class EngineOptions:
    """What an engine may use.

    Args:
        policy: how it shares its time.
        context: tokens of prompt and reply together; 0 for no limit.
        memory_bytes: what caches, prefixes and reading may take; 0 for half of what is available at the start.
        prefix_bytes: of these, what prefixes may take; None for half.
        checkpoint_tokens: a prompt leaves a checkpoint at least once in so many tokens; 0 only at its cuts.
        revision: of model and quantization; prefixes are shared among equal ones.
    """

    policy: Policy = Policy()
    context: int = 0
    memory_bytes: int = 0
    prefix_bytes: int | None = None
    checkpoint_tokens: int = 2048
    revision: str = ""

    def __post_init__(self) -> None:
        for name in ("context", "memory_bytes", "prefix_bytes", "checkpoint_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{name} is {value}, expected a whole number of at least 0")


class Engine:
    """A model that answers many requests at once.

    Args:
        model, tokenizer: as `optiq.models.load.load` gives them; the model's blocks are watched from now on.
        options: what it may use.
    """

    def __init__(self, model: Any, tokenizer: Any, options: EngineOptions | None = None) -> None:
        self.options = options = options or EngineOptions()
        self.model, self.tokenizer = model, tokenizer
        watch(model)
        limit = options.memory_bytes or system.available_bytes() // 2
        self.prefix: PrefixCache[Any] = PrefixCache(limit // 2 if options.prefix_bytes is None else options.prefix_bytes)
        self.scheduler = Scheduler(options.policy)
        self.budget = Budget(limit)
        self._admission = Admission(model, self.budget, self.prefix, options.context, options.policy.chunk)
        self.counters: Counter[str] = Counter()
        self._batch = rows.Batch(rows.side_by_side(model, make_caches(model)))
        self._jobs: dict[str, Job] = {}
        self._names = 0
        self._steps, self._active = 0, 0
        self._events: list[Event] = []
        self._adapters = Mounted(model)
        self._compiler: Compiler | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.scheduler.idle and not self._events

    def footprint(self, maker: Maker) -> Footprint:
        """What caches of this kind take; measured once.

        Raises:
            OptiqError: the model cannot have such caches.
        """
        return self._admission.footprint(maker)

    def submit(self, request: Request, name: str | None = None) -> str:
        """Take a request in; its events come from the steps that follow.

        Returns:
            Its name: the given one, or one that no other request of this engine has.

        Raises:
            Refused: it can never run here, or too many wait.
            OptiqError: it asks for something that the model does not have.
        """
        self._names += 1
        name = f"request-{self._names}" if name is None else name
        if name in self._jobs:
            raise InputError(f"a request named {name!r} is running; give another name")
        kind = self._admission.kind(request.caches)
        request = self._admission.fitted(request)
        key: Hashable = (self.options.revision, kind, self._adapters.sha256(request.adapter), request.template)
        job = Job(name, request, key, time.perf_counter(), self._grammar(request))
        self.scheduler.submit(name)
        self._jobs[name] = job
        self.counters["requests"] += 1
        return name

    def cancel(self, name: str) -> None:
        """End a request in whatever state it is; its memory is free when this returns. Unknown names are ignored."""
        job = self._jobs.get(name)
        if job is not None:
            self._close(job, job.end(Finish.CANCELLED))

    def mount(self, name: str, path: str | os.PathLike[str]) -> None:
        """Make the adapter of a directory (PEFT's or mlx-lm's) usable by requests under a name.

        Raises:
            OptiqError: it cannot be read, does not fit the model, or the name is taken.
        """
        self._adapters.mount(name, load_adapter(path, self.model))

    def unmount(self, name: str) -> None:
        """Forget an adapter and free its memory.

        Raises:
            InputError: there is none of this name, or a request that runs uses it.
        """
        users = [job.name for job in self._jobs.values() if job.request.adapter == name]
        if users:
            raise InputError(f"adapter {name!r} is in use by {', '.join(users)}; wait for them or cancel them")
        self._adapters.unmount(name)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the mounted adapters."""
        return self._adapters.names

    def step(self) -> list[Event]:
        """Do the next thing, and tell what happened since the last step."""
        self._start_waiting()
        turn = self.scheduler.turn()
        if turn.decode:
            self._decode()
        self._read_on(turn.slice_s)
        events, self._events = self._events, []
        return events

    def run(self) -> list[Event]:
        """Steps until nothing is left to do."""
        found: list[Event] = []
        while not self.idle:
            found += self.step()
        return found

    def load(self) -> Load:
        """How busy it is."""
        reading = sum(cache_bytes(self._jobs[name].caches) for name in self.scheduler.reading)
        counters = {
            **self.counters,
            "prefix_tokens_asked": self.prefix.counters.asked,
            "prefix_tokens_found": self.prefix.counters.found,
            "evictions": self.prefix.counters.evictions,
        }
        lists, held = self.scheduler, self._batch.bytes + reading
        counts = len(lists.waiting), len(lists.reading), len(lists.decoding)
        return Load(*counts, held, self.prefix.bytes, self.budget.limit_bytes, counters)

    def _grammar(self, request: Request) -> State | None:
        """What limits the tokens of a reply; None where nothing does."""
        if request.grammar is None and request.thinking_budget is None:
            return None
        compiler = self._grammars()
        grammar = compiler.anything if request.grammar is None else compiler.compile(request.grammar)
        return grammar.start(request.after, request.thinking_budget)

    def _grammars(self) -> Compiler:
        """Made with the first grammar."""
        if self._compiler is None:
            width = self.model(mx.array([[0]])).shape[-1]  # never computed
            self._compiler = Compiler(self.tokenizer, width, self.tokenizer.eos_token_ids)
        return self._compiler

    def _start_waiting(self) -> None:
        while (name := self.scheduler.next_waiting()) is not None:
            job = self._jobs[name]
            if not self._admission.make_room(name, job.request):
                return
            self.scheduler.started(name)
            with self._edge_of(job):
                self._restore(job)

    def _restore(self, job: Job) -> None:
        """Give a request its caches, with the longest prefix that is known."""
        request, now = job.request, time.perf_counter()
        job.started = now
        fresh = request.caches(self.model)
        scoring = request.prompt_logprobs is not None  # which needs every token to be read
        found = None if scoring else self.prefix.find(job.key, request.prompt, len(request.prompt) - 1)
        if found is None:
            job.caches = fresh
        else:
            assert found.rest is not None
            job.caches = pieces.build(fresh, [step.columns.value for step in found.path()], found.rest.value)
            job.read, job.before = found.length, found
        job.since = pieces.counts(job.caches)
        job.cuts = plan_cuts(len(request.prompt), request.cuts, self.options.checkpoint_tokens)
        job.usage = replace(job.usage, cached_tokens=job.read, queue_s=now - job.submitted)
        job.begin_text(self.tokenizer)
        self.counters["prompt_tokens"] += len(request.prompt)
        self.counters["cached_tokens"] += job.read

    def _read_on(self, slice_s: float | None) -> None:
        """Read at prompts in their turn for so many seconds; without a limit, one chunk."""
        end = None if slice_s is None else time.perf_counter() + slice_s
        while (name := self.scheduler.turn().read) is not None:
            job = self._jobs[name]
            self._read(job, None if end is None else end - time.perf_counter())
            if end is None or job.chunk is not None or time.perf_counter() >= end:
                return

    def _read(self, job: Job, slice_s: float | None) -> None:
        """Read on at a prompt; at its end the first token is drawn."""
        with self._edge_of(job):
            prompt = job.request.prompt
            if job.chunk is None and job.read < len(prompt) - 1:
                longest = self._admission.chunk if job.request.prompt_logprobs is None else GRID  # logits are V wide
                stop = next_stop(job.read, len(prompt), job.cuts, longest)
                job.chunk = Chunk(self.model, prompt[job.read : stop], job.caches, self._adapters.rows([job.request.adapter]))
                mx.reset_peak_memory()
                self._active = mx.get_active_memory()
            if job.chunk is not None:
                if not job.chunk.advance(slice_s):
                    return
                self._chunk_read(job, job.chunk)
            if job.read == len(prompt) - 1:
                self._first(job)

    def _chunk_read(self, job: Job, chunk: Chunk) -> None:
        """A chunk is done: book it, and keep a checkpoint where one is due."""
        job.chunk = None
        top, following = job.request.prompt_logprobs, job.request.prompt[job.read + 1 : job.read + chunk.size + 1]
        scored = () if top is None else chunk.scored(following, top)
        job.read += chunk.size
        job.since_s += chunk.seconds
        self.budget.learn(max(0, mx.get_peak_memory() - max(self._active, mx.get_active_memory())), max(GRID, chunk.size))
        self.scheduler.read(job.name, chunk.size)
        self._events.append(Progress(job.name, job.read, len(job.request.prompt), scored))
        if job.read in job.cuts and self.prefix.limit_bytes:
            self._keep(job)

    def _keep(self, job: Job) -> None:
        """A checkpoint of what the caches hold now."""
        tokens = job.request.prompt[: job.read]
        columns, rest = pieces.take(job.caches, job.since), pieces.rests(job.caches)
        mx.eval(pieces.arrays(columns), pieces.arrays(rest))
        kept = self.prefix.add(
            job.key,
            tokens,
            job.before,
            Piece(columns, pieces.bytes_of(columns)),
            Piece(rest, pieces.bytes_of(rest)),
            job.since_s,
        )
        if kept is not None:
            job.before, job.since, job.since_s = kept, pieces.counts(job.caches), 0.0

    def _first(self, job: Job) -> None:
        """The last token of the prompt gives the first of the reply; then the row joins the batch."""
        with self._adapters.rows([job.request.adapter]):
            logits = self.model(mx.array([[job.request.prompt[-1]]]), cache=job.caches)[:, -1]
        drawn = self._draw([job], logits)
        mx.eval(cache_arrays(job.caches))
        self.scheduler.ready(job.name)
        self._batch.add(job.name, job.caches, job.request.adapter)
        job.caches = []
        self._tell([job], logits, drawn)

    def _decode(self) -> None:
        """One token for every row."""
        start = time.perf_counter()
        jobs = [self._jobs[name] for name in self._batch.names]
        with self._edge_of(*jobs):
            logits = self._batch.forward(self.model, mx.array([[job.last] for job in jobs]), self._adapters)[:, -1]
            drawn = self._draw(jobs, logits)
            mx.eval(self._batch.arrays())
            self._tell(jobs, logits, drawn)
            self.scheduler.stepped(time.perf_counter() - start)
            self._steps += 1
            self.counters["decode_steps"] += 1
            if self._steps % CLEAR_EVERY == 0:
                mx.clear_cache()

    def _draw(self, jobs: Sequence[Job], logits: mx.array) -> list[int]:
        """One token per row of logits [B, V]; masks are made while the logits are computed."""
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        masks = [None if job.grammar is None else job.grammar.mask() for job in jobs]
        found: list[int] = draw_rows([job.sampler for job in jobs], logits, masks).tolist()  # type: ignore[assignment]
        return found

    def _tell(self, jobs: Sequence[Job], logits: mx.array, drawn: Sequence[int]) -> None:
        """Book the drawn tokens; a row that ends leaves."""
        told = self._logprobs(jobs, logits, drawn)
        for row, (job, token) in enumerate(zip(jobs, drawn, strict=True)):
            self.counters["tokens"] += 1
            job.usage = replace(job.usage, forwards=job.usage.forwards + 1)
            with self._edge_of(job):
                event, ended = job.take(token, time.perf_counter(), *told.get(row, ()))
                if event is not None:
                    self._events.append(event)
                if ended is not None:
                    self._close(job, ended)

    @staticmethod
    def _logprobs(jobs: Sequence[Job], logits: mx.array, drawn: Sequence[int]) -> dict[int, tuple[float, tuple[Logprob, ...]]]:
        """By row, for those who asked."""
        asking = [row for row, job in enumerate(jobs) if job.request.logprobs is not None]
        if not asking:
            return {}
        tops = [min(jobs[row].request.logprobs or 0, logits.shape[-1]) for row in asking]
        found = log_probabilities(logits[mx.array(asking)], [drawn[row] for row in asking], tops)
        return {
            row: (one.chosen, tuple(Logprob(int(i), float(v)) for i, v in zip(one.ids, one.values, strict=True)))
            for row, one in zip(asking, found, strict=True)
        }

    @contextmanager
    def _edge_of(self, *jobs: Job) -> Iterator[None]:
        """What raises in here ends these requests, and nothing else."""
        try:
            yield
        except Exception as error:
            for job in jobs:
                if job.name in self._jobs:
                    self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """A request could not go on."""
        self.counters["failures"] += 1
        text = str(error) if isinstance(error, OptiqError) else f"{type(error).__name__}: {error}"
        self._close(job, job.end(Finish.FAILED, text.splitlines()[0] if text else type(error).__name__))

    def _close(self, job: Job, ended: Finished) -> None:
        """A request is gone: its row, its memory, its place in the line."""
        self.scheduler.ended(job.name)
        if job.name in self._batch.names:
            self._batch.remove(job.name)
        job.caches, job.chunk, job.before = [], None, None
        self.budget.release(job.name)
        del self._jobs[job.name]
        self.counters[f"finished_{ended.finish}"] += 1
        self._events.append(ended)

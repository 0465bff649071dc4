"""The engine: requests in, events out, one step at a time. Owns MLX; whoever calls `step` owns the thread.

A step starts what may start, lets every row that has its prompt read draw one token in one forward pass, and those behind it that
were guessed right (`drafting`), and reads on at one prompt for a slice of time (`scheduler`). Prompts begin at the longest prefix
that was read before (`prefix`); rows keep caches of their own kinds and draw with samplers of their own (`rows`), so that a reply
depends on nothing else in the batch. A row that fails ends alone.
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
from optiq.kernels import memory as system
from optiq.kv import pieces
from optiq.kv.options import Maker
from optiq.lora.adapters import load_adapter
from optiq.lora.mounted import Mounted
from optiq.models.caches import cache_bytes
from optiq.models.forward import Halves
from optiq.models.marks import watch
from optiq.serve.admission import Admission
from optiq.serve.drafting import Drafts
from optiq.serve.drawing import Drawn, draw, logprobs
from optiq.serve.grammar import Compiler, State
from optiq.serve.job import Job
from optiq.serve.memory import Budget, Footprint
from optiq.serve.prefix import Piece, PrefixCache
from optiq.serve.reading import Chunk, next_stop, plan_cuts
from optiq.serve.request import Event, Finish, Finished, Load, Progress, Request
from optiq.serve.rows import Batch
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
        drafts: who guesses tokens ahead; None for nobody.
    """

    def __init__(self, model: Any, tokenizer: Any, options: EngineOptions | None = None, drafts: Drafts | None = None) -> None:
        self.options = options = options or EngineOptions()
        self.model, self.tokenizer = model, tokenizer
        watch(model)
        limit = options.memory_bytes or system.available_bytes() // 2
        self.prefix: PrefixCache[Any] = PrefixCache(limit // 2 if options.prefix_bytes is None else options.prefix_bytes)
        self.scheduler = Scheduler(options.policy)
        self.budget = Budget(limit)
        self._drafts = drafts or Drafts()
        self._admission = Admission(
            model, self.budget, self.prefix, options.context, options.policy.chunk, self._drafts.token_bytes
        )
        self.counters: Counter[str] = Counter()
        self._halves, self._adapters = Halves(model), Mounted(model)
        self._batch = Batch(self._halves, self._adapters)
        self._width = self._batch.width
        self._jobs: dict[str, Job] = {}
        self._names = 0
        self._steps, self._active = 0, 0
        self._events: list[Event] = []
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
        beyond = [token for token in request.sampling.logit_bias if not 0 <= token < self._width]
        if beyond:
            raise InputError(f"logit bias for token {beyond[0]}, expected an id from 0 to {self._width - 1}")
        kind = self._admission.kind(request.caches)
        request = self._admission.fitted(request)
        adapter, drafts = self._adapters.sha256(request.adapter), self._drafts.wanted(request)
        key: Hashable = (self.options.revision, kind, adapter, request.template, drafts)
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
        reading += sum(job.drafter.bytes for job in self._jobs.values() if job.drafter is not None)
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
        return grammar.start(request.after, request.thinking_budget, request.opening)

    def _grammars(self) -> Compiler:
        """Made with the first grammar."""
        if self._compiler is None:
            self._compiler = Compiler(self.tokenizer, self._width, self.tokenizer.eos_token_ids)
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
        job.caches = request.caches(self.model)
        self._drafts.begin(job)
        scoring = request.prompt_logprobs is not None  # which needs every token to be read
        found = None if scoring else self.prefix.find(job.key, request.prompt, len(request.prompt) - 1)
        if found is not None:
            assert found.rest is not None
            built = pieces.build(job.held(), [step.columns.value for step in found.path()], found.rest.value)
            own = len(job.caches)
            job.caches, job.read, job.before = built[:own], found.length, found
            if job.drafter is not None:
                job.drafter.adopt(built[own:], found.length)
        job.since = pieces.counts(job.held())
        job.cuts = plan_cuts(len(request.prompt), request.cuts, self.options.checkpoint_tokens)
        job.usage = replace(job.usage, cached_tokens=job.read, queue_s=now - job.submitted)
        job.begin_text(self.tokenizer)
        self.counters["prompt_tokens"] += len(request.prompt)
        self.counters["cached_tokens"] += job.read
        self._events.append(Progress(job.name, job.read, len(request.prompt), cached=job.read))

    def _read_on(self, slice_s: float | None) -> None:
        """Read at prompts in their turn for so many seconds; without a limit, one chunk."""
        end = None if slice_s is None else time.perf_counter() + slice_s
        while (name := self.scheduler.turn().read) is not None:
            job = self._jobs[name]
            self._read(job, None if end is None else end - time.perf_counter())
            if end is None or job.chunk is not None or time.perf_counter() >= end:
                return

    def _read(self, job: Job, slice_s: float | None) -> None:
        """Read on at a prompt; at its end the row joins the others."""
        with self._edge_of(job):
            prompt = job.request.prompt
            if job.chunk is None and job.read < len(prompt) - 1:
                scoring = job.request.prompt_logprobs is not None
                stop = next_stop(job.read, len(prompt), job.cuts, GRID if scoring else self._admission.chunk)
                adapted = self._adapters.rows([job.request.adapter])
                job.chunk = Chunk(self._halves, prompt[job.read : stop], job.caches, adapted, job.drafter, scoring)
                mx.reset_peak_memory()
                self._active = mx.get_active_memory()
            if job.chunk is not None:
                if not job.chunk.advance(slice_s):
                    return
                self._chunk_read(job, job.chunk)
            if job.read == len(prompt) - 1:  # the last token is the row's first step
                self.scheduler.ready(job.name)
                self._batch.add(job.name, job.caches, job.request.adapter)
                job.caches = []

    def _chunk_read(self, job: Job, chunk: Chunk) -> None:
        """A chunk is done: book it, and keep a checkpoint where one is due."""
        job.chunk = None
        top, following = job.request.prompt_logprobs, job.request.prompt[job.read + 1 : job.read + chunk.size + 1]
        scored = () if top is None else chunk.scored(following, top)
        job.read += chunk.size
        job.since_s += chunk.seconds
        self.budget.learn(max(0, mx.get_peak_memory() - max(self._active, mx.get_active_memory())), max(GRID, chunk.size))
        self.scheduler.read(job.name, chunk.size)
        self._events.append(Progress(job.name, job.read, len(job.request.prompt), job.usage.cached_tokens, scored))
        if job.read in job.cuts and self.prefix.limit_bytes:
            self._keep(job)

    def _keep(self, job: Job) -> None:
        """A checkpoint of what the caches hold now."""
        tokens = job.request.prompt[: job.read]
        held = job.held()
        columns, rest = pieces.take(held, job.since), pieces.rests(held)
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
            job.before, job.since, job.since_s = kept, pieces.counts(held), 0.0
        self.prefix.shrink(self.budget.missing(0, self.prefix.bytes, 0))  # what is promised comes first

    def _decode(self) -> None:
        """One token for every row, and those behind it that were guessed right."""
        start = time.perf_counter()
        jobs = [self._jobs[name] for name in self._batch.names]
        with self._edge_of(*jobs):
            draft = self._drafts.draft(jobs, self._batch.lookahead)
            tokens = mx.array([[job.last] for job in jobs])
            if draft.tokens is None:
                hidden, logits = self._batch.forward(tokens)
                drawn = draw(jobs, logits, draft)
                mx.eval(self._batch.states())
            else:
                mx.async_eval(draft.tokens)  # type: ignore[no-untyped-call]
                tokens = mx.concatenate([tokens, draft.tokens], axis=1)
                with self._batch.looking(draft.length) as step:
                    hidden, logits = self._batch.forward(tokens)
                    drawn = draw(jobs, logits, draft)
                    self._batch.keep(step, tokens, [len(row.ids) for row in drawn])
            for row, (job, own) in enumerate(zip(jobs, drawn, strict=True)):
                if job.drafter is not None:
                    job.drafter.seen(mx.array([job.last, *own.ids[:-1]]), hidden[row : row + 1, : len(own.ids)])
            seconds = time.perf_counter() - start
            self._drafts.took(draft.depths, [own.accepted for own in drawn], seconds)
            self._tell(jobs, logits, drawn, draft.depths)
            self.scheduler.stepped(seconds)
            self._steps += 1
            self.counters["decode_steps"] += 1
            if self._steps % CLEAR_EVERY == 0:
                mx.clear_cache()

    def _tell(self, jobs: Sequence[Job], logits: mx.array, drawn: Sequence[Drawn], depths: Sequence[int]) -> None:
        """Book the drawn tokens; a row that ends leaves."""
        told = logprobs(jobs, logits, drawn)
        for row, (job, own, depth) in enumerate(zip(jobs, drawn, depths, strict=True)):
            self.counters.update(drafted=depth, accepted=own.accepted)
            with self._edge_of(job):
                if job.failure is not None:
                    raise job.failure
                job.looked(depth, own.accepted)
                for place, token in enumerate(own.ids):
                    self.counters["tokens"] += 1
                    event, ended = job.take(token, time.perf_counter(), *told.get((row, place), ()))
                    if event is not None:
                        self._events.append(event)
                    if ended is not None:
                        self._close(job, ended)
                        break

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
        finish = Finish.REFUSED if isinstance(error, InputError) else Finish.FAILED
        self._close(job, job.end(finish, text.splitlines()[0] if text else type(error).__name__))

    def _close(self, job: Job, ended: Finished) -> None:
        """A request is gone: its row, its memory, its place in the line."""
        self.scheduler.ended(job.name)
        if job.name in self._batch.names:
            self._batch.remove(job.name)
        job.caches, job.chunk, job.before, job.drafter = [], None, None, None
        self.budget.release(job.name)
        del self._jobs[job.name]
        self.counters[f"finished_{ended.finish}"] += 1
        self._events.append(ended)

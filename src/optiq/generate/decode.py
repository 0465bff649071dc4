"""Tokens from a model: the prompt in chunks, then one token at a time with the next step already under way.

`Context` holds a model's caches and knows which tokens they have seen, so that a prompt which begins with those is read
from there on. `Reply` is one generation: iterate it for text, then ask it for `statistics`. Knows no chat templates and no
terminals; which kernels compute is decided where the model is loaded.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from optiq.errors import InputError
from optiq.generate.options import PREFILL_CHUNK, Options
from optiq.generate.sampler import Sampler
from optiq.generate.sampling import Sampling
from optiq.generate.text import Pieces, StopStrings
from optiq.models.caches import Caches, Mark, cache_arrays, cache_bytes, can_cut, cut, make_caches, wired
from optiq.models.forward import Halves
from optiq.models.rollback import Verify

if TYPE_CHECKING:
    from optiq.generate.depth import Depth
    from optiq.generate.drafter import Drafter

FREE_EVERY = 256  # steps between two returns of MLX's unused buffers, which grow with the cache

Draw = Callable[[mx.array], mx.array]
Progress = Callable[[int, int], None]


@dataclass
class Speculated:
    """What guessing did.

    Args:
        forwards: passes of the model after the prompt.
        drafted: guesses that were checked.
        accepted: of them, those that were right.
    """

    forwards: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """Share of the guesses that were right; 0 where there was none."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass
class Statistics:
    """What a generation took.

    Args:
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them the caches had seen already.
        prompt_s: seconds until the first token was there.
        tokens: generated, the one that ended the reply included.
        decode_s: seconds from the first token to the last.
        finish: `stop` (a stop token or string), `length`, or `cut` (the reader went away or interrupted).
        stopped_by: the id or string that stopped it, or None.
        peak_memory_bytes: the most that MLX had allocated since it started, or since `mx.reset_peak_memory`.
        peak_resident_bytes: the most that the process had resident, ever.
        speculation: what guessing did; None where nobody guessed.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_s: float = 0.0
    tokens: int = 0
    decode_s: float = 0.0
    finish: str = "cut"
    stopped_by: int | str | None = None
    peak_memory_bytes: int = 0
    peak_resident_bytes: int = 0
    speculation: Speculated | None = None

    @property
    def prompt_tokens_per_s(self) -> float:
        """Tokens of the prompt that had to be read, per second until the first token."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_s if self.prompt_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first one per second; 0 where there was none."""
        return (self.tokens - 1) / self.decode_s if self.decode_s and self.tokens > 1 else 0.0

    def as_json(self) -> dict[str, Any]:
        """All fields and both rates."""
        return {
            **asdict(self),
            "prompt_tokens_per_s": self.prompt_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
        }


class Context:
    """A model with its caches and the tokens that they have seen.

    Args:
        model: called as `model(tokens [1, L], cache=caches)`, gives logits [1, L, V].
        make: fresh caches for the model, for instance packed ones (`optiq.kv`).
        drafter: is told of all that the model reads, so that it can guess what comes (`optiq.generate.speculative`).

    Attributes:
        halves: the model in two halves.
    """

    def __init__(self, model: Any, make: Callable[[Any], Caches] = make_caches, drafter: Drafter | None = None) -> None:
        self._model, self._make, self.drafter = model, make, drafter
        self.halves = Halves(model)
        self.caches: Caches = make(model)
        self.tokens: list[int] = []
        self._mark: tuple[list[int], Mark] | None = None
        self._whole = True  # False while a step is under way: an interrupt then leaves layers of different lengths

    def rewind(self, prompt: Sequence[int]) -> int:
        """Make the caches hold a beginning of `prompt`, as long a one as can be had, and return its length.

        At least the last token is left to be read, for the logits are made from it. Caches that cannot be cut go back to
        the marked place where the prompt begins with what stood there, and to nothing otherwise.
        """
        length = self._rewind(prompt)
        if self.drafter is not None:
            self.drafter.rewind(length)
        return length

    def _rewind(self, prompt: Sequence[int]) -> int:
        most = len(prompt) - 1
        shared = _shared(self.tokens, prompt[:most])
        if self._whole and shared == len(self.tokens):
            return shared
        if self._whole and can_cut(self.caches):
            cut(self.caches, len(self.tokens) - shared)
            self.tokens = self.tokens[:shared]
            if self._mark is not None and len(self._mark[0]) > shared:
                self._mark = None  # what stood there is overwritten by what comes
            return shared
        if self._mark is not None and self._mark[0] == list(prompt[: min(most, len(self._mark[0]))]):
            self.tokens = list(self._mark[0])
            self.caches = self._mark[1].restore(self.caches)
        else:
            self.tokens, self._mark = [], None
            self.caches = self._make(self._model)
        self._whole = True
        return len(self.tokens)

    def mark(self) -> None:
        """Remember this place for `rewind`; the earlier one is forgotten. Costs a copy where caches cannot be cut."""
        self._mark = None
        self._mark = (list(self.tokens), Mark(self.caches))

    def read(
        self,
        tokens: Sequence[int],
        chunk: int = PREFILL_CHUNK,
        progress: Progress | None = None,
        at: int = 0,
        watched: bool = True,
    ) -> None:
        """Let the caches see tokens, without making logits.

        Args:
            tokens: ids that follow on `self.tokens`.
            chunk: how many per step.
            progress: called with tokens read and tokens to read after each step.
            at: set the mark when the caches have seen so many tokens in all; 0 for never.
            watched: the drafter is told.
        """
        done, end = 0, len(tokens)
        if at and at == len(self.tokens):
            self.mark()
        while done < end:
            to_mark = at - len(self.tokens)
            step = min(chunk, end - done, to_mark if to_mark > 0 else end)
            piece = list(tokens[done : done + step])
            self._whole = False
            ids = mx.array(piece)
            hidden = self.halves.body(ids[None], self.caches)
            if self.drafter is not None and watched:
                self.drafter.seen(ids, hidden)
            mx.eval(cache_arrays(self.caches))
            self.tokens += piece
            self._whole = True
            mx.clear_cache()
            done += step
            if len(self.tokens) == at:
                self.mark()
            if progress is not None:
                progress(done, end)

    def steps(self, last: int, draw: Draw, most: int) -> Generator[int, None, None]:
        """Token ids drawn after `last`, the final token of the prompt, which the caches have not seen yet.

        The step for the next token is launched before the present one is waited for, so that the device never idles;
        whoever stops early has computed one step too many, and the caches have seen the token that it yielded last.

        Args:
            last: token id.
            draw: logits [V] to a token [1], lazily.
            most: at most so many tokens.
        """
        self._whole = False
        token = self._launch(mx.array([last]), draw)
        self.tokens.append(last)
        for count in range(1, most + 1):
            self._whole = False
            following = self._launch(token, draw) if count < most else None
            found = int(token.item())
            if following is not None:
                self.tokens.append(found)
            self._whole = True
            yield found
            if following is None:
                return
            token = following
            if count % FREE_EVERY == 0:
                mx.clear_cache()

    def _launch(self, token: mx.array, draw: Draw) -> mx.array:
        """Start the step that reads a token [1] and draws the next; does not wait."""
        hidden = self.halves.body(token[None], self.caches)
        if self.drafter is not None:
            self.drafter.seen(token, hidden)
        drawn = draw(self.halves.head(hidden)[0, -1])
        mx.async_eval(drawn)
        return drawn

    @contextmanager
    def looking(self, length: int) -> Iterator[Verify]:
        """A step that reads so many tokens and may keep fewer; whoever looks adds what is kept to `tokens`."""
        self._whole = False
        with Verify(self.caches, length) as step:
            yield step
        self._whole = True

    @property
    def bytes(self) -> int:
        """What the caches take, the drafter's included."""
        return cache_bytes(self.caches) + (0 if self.drafter is None else self.drafter.bytes)


class Reply:
    """One generation, as pieces of text.

    Args:
        context: the model; its caches grow by prompt and reply.
        tokenizer: decodes token ids.
        prompt: token ids, at least one; where it begins as the context does, only the rest is read.
        sampling: how tokens are drawn.
        options: where it ends.
        mark: length of the beginning of the prompt that a later prompt will have too; 0 for none.
        depth: how many tokens the context's drafter guesses per step; None for none.

    Raises:
        InputError: the prompt is empty.
    """

    def __init__(
        self,
        context: Context,
        tokenizer: Any,
        prompt: Sequence[int],
        sampling: Sampling,
        options: Options,
        mark: int = 0,
        depth: Depth | None = None,
    ) -> None:
        if not prompt:
            raise InputError("the prompt is empty (0 tokens), expected at least one; give a text")
        self._context, self._tokenizer, self._prompt = context, tokenizer, list(prompt)
        self._sampling, self._options, self._at, self._depth = sampling, options, mark, depth
        self._read = False
        self.ids: list[int] = []
        self.statistics = Statistics(prompt_tokens=len(self._prompt))

    def find_start(self) -> int:
        """Look for what the context has seen of the prompt, and return how many tokens are left to be read."""
        self.statistics.cached_tokens = self._context.rewind(self._prompt)
        return len(self._prompt) - self.statistics.cached_tokens

    def read(self, progress: Progress | None = None) -> None:
        """Read the prompt but for its last token, reporting after each chunk; iterating does so where nobody has."""
        start = time.perf_counter()
        self.find_start()
        self._context.read(self._prompt[self.statistics.cached_tokens : -1], self._options.prefill_chunk, progress, self._at)
        self._read = True
        self.statistics.prompt_s = time.perf_counter() - start

    def __iter__(self) -> Generator[str, None, None]:
        """Text as it becomes certain, never an empty or a broken piece."""
        pieces, stops, told = Pieces(self._tokenizer), StopStrings(self._options.stops), self.statistics
        with wired():
            if not self._read:
                self.read()
            tokens = self._timed()
            try:
                for token in tokens:
                    if token in self._options.stop_ids:
                        told.finish, told.stopped_by = "stop", token
                        break
                    if piece := stops.pass_on(pieces.add(token)):
                        yield piece
                    if stops.found is not None:
                        told.finish, told.stopped_by = "stop", stops.found
                        return
                else:
                    told.finish = "length"
                rest = stops.pass_on(pieces.finish())
                if stops.found is not None:
                    told.finish, told.stopped_by = "stop", stops.found
                if rest := rest + stops.finish():
                    yield rest
            finally:
                tokens.close()
                told.peak_memory_bytes = int(mx.get_peak_memory())
                told.peak_resident_bytes = peak_resident_bytes()

    def _timed(self) -> Generator[int, None, None]:
        """The drawn tokens, counted and timed."""
        start, told = time.perf_counter(), self.statistics
        steps = self._steps(Sampler(self._sampling, self._prompt))
        try:
            for token in steps:
                now = time.perf_counter()
                if not self.ids:
                    told.prompt_s += now - start
                    start = now
                self.ids.append(token)
                told.tokens, told.decode_s = len(self.ids), now - start
                yield token
        finally:
            steps.close()

    def _steps(self, sampler: Sampler) -> Generator[int, None, None]:
        """The drawn tokens, by guesses where they are wanted."""
        last, most = self._prompt[-1], self._options.max_tokens
        if self._depth is None:
            return self._context.steps(last, sampler, most)
        from optiq.generate.speculative import Speculation

        speculation = Speculation(self._context, self._depth)
        self.statistics.speculation = speculation.told
        return speculation.steps(last, sampler, most, self._options.stop_ids)


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

"""Who runs next: waiting requests are started in the order of their arrival, prompts are read in turns beside decoding. No MLX.

One turn is a decoding step of every row that has its prompt read, then a slice of reading for one prompt. With rows decoding, the
slice is as long as the gap between their tokens may grow; without, it is a whole chunk. A prompt of many chunks goes to the
back of the line after `Policy.turn_tokens`, so that a short one behind it need not wait for all of it.

    waiting --start--> reading --read--> decoding --end-->

The engine measures and computes; this module only decides. Times are the caller's, in seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from optiq.errors import InputError
from optiq.serve.request import Reason, Refused

GRID = 64  # tokens: prompts are read in whole multiples, so that a prefix is computed alike whoever reads it
SMOOTHING = 0.2  # weight of the newest decoding step in the running mean of their durations


@dataclass(frozen=True)
class Policy:
    """How an engine shares its time.

    Args:
        max_rows: requests that read or decode at once.
        max_waiting: requests that wait; more are refused.
        chunk: tokens of a prompt per forward pass, a multiple of `GRID`.
        gap: how many times its length alone a gap between two tokens may take while a prompt is read; above 1.
        turn_tokens: tokens that a prompt reads before another one has its turn.
    """

    max_rows: int = 16
    max_waiting: int = 256
    chunk: int = 512
    gap: float = 3.1
    turn_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_waiting", "turn_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected a whole number of at least 1")
        if self.chunk < GRID or self.chunk % GRID:
            raise InputError(f"the chunk is {self.chunk} tokens, expected a multiple of {GRID}")
        if not self.gap > 1:
            raise InputError(f"gap is {self.gap}, expected a number above 1")


@dataclass(frozen=True)
class Turn:
    """What to do now.

    Args:
        decode: requests that take a decoding step together.
        read: the request whose prompt is read on, or None.
        slice_s: how long to read; None for a whole chunk.
    """

    decode: tuple[str, ...] = ()
    read: str | None = None
    slice_s: float | None = None


class Scheduler:
    """The lists of requests by state; requests are known by name."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.waiting: deque[str] = deque()
        self.reading: deque[str] = deque()
        self.decoding: list[str] = []
        self._turn_left = policy.turn_tokens
        self._step_s = 0.0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or self.decoding)

    def submit(self, request: str) -> None:
        """Put a request at the end of the line.

        Raises:
            Refused: the line is full.
        """
        if len(self.waiting) >= self.policy.max_waiting:
            raise Refused(
                Reason.QUEUE, f"{len(self.waiting)} requests are waiting, which is the limit; try again when some have ended"
            )
        self.waiting.append(request)

    def next_waiting(self) -> str | None:
        """The request to be started next, if a row is free for it."""
        busy = len(self.reading) + len(self.decoding)
        return self.waiting[0] if self.waiting and busy < self.policy.max_rows else None

    def started(self, request: str) -> None:
        """It has its caches and reads its prompt from now on."""
        self.waiting.remove(request)
        self.reading.append(request)

    def read(self, request: str, tokens: int) -> None:
        """It has read so many tokens more; call at the end of a chunk."""
        self._turn_left -= tokens
        if self._turn_left <= 0:
            if self.reading and self.reading[0] == request:
                self.reading.rotate(-1)
            self._turn_left = self.policy.turn_tokens

    def ready(self, request: str) -> None:
        """Its prompt is read; it decodes from now on."""
        self._leave_reading(request)
        self.decoding.append(request)

    def ended(self, request: str) -> None:
        """It is gone, whatever state it was in."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.reading:
            self._leave_reading(request)
        elif request in self.decoding:
            self.decoding.remove(request)

    def stepped(self, seconds: float) -> None:
        """A decoding step took so long, without reading."""
        self._step_s = seconds if not self._step_s else self._step_s + SMOOTHING * (seconds - self._step_s)

    def turn(self) -> Turn:
        """What to do now."""
        decode = tuple(self.decoding)
        read = self.reading[0] if self.reading else None
        slice_s = (self.policy.gap - 1) * self._step_s if decode and read else None
        return Turn(decode, read, slice_s)

    def _leave_reading(self, request: str) -> None:
        if self.reading[0] == request:
            self._turn_left = self.policy.turn_tokens
        self.reading.remove(request)

"""What a request will take, and whether there is room: known before it is started, so that nothing has to be thrown away later.

    bytes of a request = fixed + per_token · (prompt + longest reply)      (`Footprint`, per model and recipe of the caches)
    bytes of reading   = working · chunk                                   (learned from what chunks have taken)

Pure Python: who measures is the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GROW_TOKENS = 256  # caches grow by so many tokens at a time


@dataclass(frozen=True)
class Footprint:
    """What caches take, in bytes: once, and per token."""

    fixed_bytes: int
    per_token_bytes: float

    def of(self, tokens: int) -> int:
        """Bytes of caches that have room for so many tokens."""
        room = -(-tokens // GROW_TOKENS) * GROW_TOKENS
        return self.fixed_bytes + round(self.per_token_bytes * room)


@dataclass
class Budget:
    """Bytes that are promised to running requests, out of a limit.

    Args:
        limit_bytes: what caches, prefixes and reading may take together.
        working_bytes: what reading takes per token of a chunk; grows as chunks are seen to take more.
    """

    limit_bytes: int
    working_bytes: float = 0.0
    promised: dict[str, int] = field(default_factory=dict)

    def missing(self, need_bytes: int, prefix_bytes: int, chunk: int) -> int:
        """Bytes that are lacking for a request beside what runs; 0 where it fits."""
        used = sum(self.promised.values()) + prefix_bytes + round(self.working_bytes * chunk)
        return max(0, used + need_bytes - self.limit_bytes)

    def possible(self, need_bytes: int, chunk: int) -> bool:
        """Whether it would fit with nothing else running."""
        return need_bytes + round(self.working_bytes * chunk) <= self.limit_bytes

    def promise(self, request: str, need_bytes: int) -> None:
        """Keep bytes for a request until `release`."""
        self.promised[request] = need_bytes

    def release(self, request: str) -> None:
        """The request is gone."""
        self.promised.pop(request, None)

    def learn(self, taken_bytes: int, chunk: int) -> None:
        """Reading a chunk took so much beside what it left behind."""
        self.working_bytes = max(self.working_bytes, taken_bytes / chunk)

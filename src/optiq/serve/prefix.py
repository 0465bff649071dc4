"""Beginnings of prompts that have been read before: a radix tree over token ids with checkpoints at chosen lengths.

A checkpoint is a length at which a model's caches can be restored. Its bytes are in two pieces that the tree does not look into:

    columns    what is kept per token, only of the tokens since the checkpoint before it (keys and values)
    rest       what exists once: states of recurrent layers, full-precision tails, windows

To restore one, the columns of all checkpoints on its path are put together and its own rest is added. Rest and columns are
immutable: who restores gets copies. Where there is no room, what is cheapest to read again per byte goes first, what has not been
used for long before what has: a rest alone (its columns may carry longer prefixes), or a last checkpoint as a whole.

    priority = clock + seconds to read its tokens again / bytes            clock: the priority of what was evicted last

Source: GreedyDual-Size, Cao and Irani 1997 (USENIX Symposium on Internet Technologies and Systems), section 4.
Pure Python: knows no MLX and no caches; a store on disk would be another kind of piece.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

P = TypeVar("P")


@dataclass(frozen=True)
class Piece(Generic[P]):
    """Something to be kept, and its bytes."""

    value: P
    bytes: int


@dataclass(eq=False)
class Checkpoint(Generic[P]):
    """A restorable length.

    Args:
        length: tokens of the prefix.
        columns: of the tokens since `before`.
        rest: None once it was evicted; then the checkpoint only carries longer ones.
        before: the checkpoint that it builds on.
        seconds: what reading the tokens since `before` took.
    """

    length: int
    columns: Piece[P]
    rest: Piece[P] | None
    before: Checkpoint[P] | None
    seconds: float
    node: _Node[P]
    priority: float = 0.0
    users: int = 0  # checkpoints that build on it

    def path(self) -> list[Checkpoint[P]]:
        """All checkpoints that it builds on, first to last, itself included."""
        found: list[Checkpoint[P]] = []
        at: Checkpoint[P] | None = self
        while at is not None:
            found.append(at)
            at = at.before
        return found[::-1]

    @property
    def bytes(self) -> int:
        """What it takes now."""
        return self.columns.bytes + (self.rest.bytes if self.rest is not None else 0)


@dataclass(eq=False)
class _Node(Generic[P]):
    """An edge of the tree with the tokens on it, and what hangs at its end."""

    tokens: tuple[int, ...]
    parent: _Node[P] | None
    children: dict[int, _Node[P]] = field(default_factory=dict)
    checkpoint: Checkpoint[P] | None = None


@dataclass
class Counters:
    """Totals since the start, in tokens but for `evictions`."""

    asked: int = 0
    found: int = 0
    evictions: int = 0


class PrefixCache(Generic[P]):
    """The tree.

    Args:
        limit_bytes: what all pieces may take; 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.counters = Counters()
        self._roots: dict[Hashable, _Node[P]] = {}
        self._checkpoints: dict[int, Checkpoint[P]] = {}
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._checkpoints)

    def find(self, key: Hashable, tokens: Sequence[int], most: int) -> Checkpoint[P] | None:
        """The longest restorable checkpoint that `tokens` begin with, of at most `most` tokens; counts as a use.

        Args:
            key: whatever else must be equal: model, recipe of the caches, adapter, template.
        """
        self.counters.asked += len(tokens)
        found = None
        for node in self._walk(key, tokens):
            at = node.checkpoint
            if at is not None and at.rest is not None and at.length <= most:
                found = at
        if found is not None:
            self.counters.found += found.length
            for step in found.path():
                self._touch(step)
        return found

    def has(self, key: Hashable, tokens: Sequence[int]) -> bool:
        """Whether these very tokens are a restorable checkpoint; does not count as a use."""
        return (at := self._at(key, tokens)) is not None and at.rest is not None

    def add(
        self,
        key: Hashable,
        tokens: Sequence[int],
        before: Checkpoint[P] | None,
        columns: Piece[P],
        rest: Piece[P],
        seconds: float,
    ) -> Checkpoint[P] | None:
        """Keep a checkpoint, evicting others where there is no room.

        Args:
            key: as `find`.
            tokens: all of the prefix.
            before: the checkpoint of a shorter prefix that `columns` follow on; None where they are all columns.
            columns, rest: the pieces.
            seconds: what reading the tokens since `before` took.

        Returns:
            The checkpoint; the one that was there already; or None where it does not fit or `before` is gone.
        """
        if before is not None and not self._alive(before):
            return None
        known = self._at(key, tokens)
        if known is not None:
            if known.rest is None and known.before is before:
                known.rest = rest
                self.bytes += rest.bytes
                self._touch(known)
                self._evict(keep=known)
            return known if known.rest is not None else None
        need = columns.bytes + rest.bytes
        held = sum(step.bytes for step in before.path()) if before is not None else 0
        if need + held > self.limit_bytes:
            return None
        node = self._insert(key, tuple(tokens))
        made = Checkpoint(len(tokens), columns, rest, before, seconds, node)
        node.checkpoint = made
        self._checkpoints[id(made)] = made
        if before is not None:
            before.users += 1
        self.bytes += need
        self._touch(made)
        self._evict(keep=made)
        return made

    def shrink(self, need_bytes: int) -> int:
        """Evict until `need_bytes` are free or nothing is left; the bytes that were freed."""
        start = self.bytes
        while start - self.bytes < need_bytes and self._evict_one(None):
            pass
        return start - self.bytes

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self._checkpoints.clear()
        self.bytes = 0

    def _alive(self, checkpoint: Checkpoint[P]) -> bool:
        return id(checkpoint) in self._checkpoints

    def _touch(self, checkpoint: Checkpoint[P]) -> None:
        checkpoint.priority = self._clock + checkpoint.seconds / max(1, checkpoint.bytes)

    def _evict(self, keep: Checkpoint[P]) -> None:
        while self.bytes > self.limit_bytes and self._evict_one(keep):
            pass

    def _evict_one(self, keep: Checkpoint[P] | None) -> bool:
        """Let the piece of least priority go; whether there was one."""
        spared = {id(step) for step in keep.path()} if keep is not None else set()
        free = [c for c in self._checkpoints.values() if (c.rest is not None or not c.users) and c is not keep]
        free = [c for c in free if c.users or id(c) not in spared]
        if not free:
            return False
        worst = min(free, key=lambda c: c.priority)
        self._clock = max(self._clock, worst.priority)
        self.counters.evictions += 1
        if worst.users:
            assert worst.rest is not None
            self.bytes -= worst.rest.bytes
            worst.rest = None
        else:
            self._remove(worst, spared)
        return True

    def _remove(self, checkpoint: Checkpoint[P], spared: set[int]) -> None:
        """Take out a checkpoint that nothing builds on, and those below it that only carried it."""
        at: Checkpoint[P] | None = checkpoint
        while at is not None:
            self.bytes -= at.bytes
            del self._checkpoints[id(at)]
            at.node.checkpoint = None
            self._prune(at.node)
            before = at.before
            if before is not None:
                before.users -= 1
            at = before if before is not None and not before.users and before.rest is None and id(before) not in spared else None

    def _prune(self, node: _Node[P]) -> None:
        """Take out nodes that lead nowhere, and join one that only leads on with the next."""
        while node.parent is not None and node.checkpoint is None and not node.children:
            parent = node.parent
            del parent.children[node.tokens[0]]
            node = parent
        if node.parent is not None and node.checkpoint is None and len(node.children) == 1:
            (child,) = node.children.values()
            child.tokens, child.parent = node.tokens + child.tokens, node.parent
            node.parent.children[child.tokens[0]] = child
        if node.parent is None and not node.children and node.checkpoint is None:
            self._roots = {key: root for key, root in self._roots.items() if root is not node}

    def _walk(self, key: Hashable, tokens: Sequence[int]) -> Iterator[_Node[P]]:
        """The nodes whose whole path `tokens` begin with, first to last."""
        node, at = self._roots.get(key), 0
        while node is not None:
            yield node
            node = node.children.get(tokens[at]) if at < len(tokens) else None
            if node is not None:
                if tuple(tokens[at : at + len(node.tokens)]) != node.tokens:
                    return
                at += len(node.tokens)

    def _at(self, key: Hashable, tokens: Sequence[int]) -> Checkpoint[P] | None:
        for node in self._walk(key, tokens):
            if node.checkpoint is not None and node.checkpoint.length == len(tokens):
                return node.checkpoint
        return None

    def _insert(self, key: Hashable, tokens: tuple[int, ...]) -> _Node[P]:
        """The node at the end of `tokens`; edges are split where they part."""
        node = self._roots.setdefault(key, _Node((), None))
        while tokens:
            child = node.children.get(tokens[0])
            if child is None:
                child = node.children[tokens[0]] = _Node(tokens, node)
                return child
            same = next((n for n, (a, b) in enumerate(zip(child.tokens, tokens, strict=False)) if a != b), None)
            same = min(len(child.tokens), len(tokens)) if same is None else same
            if same < len(child.tokens):
                middle = _Node(child.tokens[:same], node, {child.tokens[same]: child})
                node.children[tokens[0]] = middle
                child.tokens, child.parent = child.tokens[same:], middle
                child = middle
            node, tokens = child, tokens[same:]
        return node

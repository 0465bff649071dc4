"""A model's forward pass in two halves, so that logits are made only where somebody wants them.

    hidden = halves.body(tokens, caches)        [B, L, E], after the final norm
    logits = halves.head(hidden[:, -1:])        [B, 1, V]

The head of a small model is a third of its weights. The model's own code computes both halves: its trunk (the module that
holds the blocks) is called alone for the first, and for the second the model is called with a stand-in that returns the hidden
state, so that scaled, capped or tied heads need no table. A model whose trunk is not called once with the tokens and the
caches is one piece: its `body` is the whole model, its `head` changes nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.models.stream import logits_of
from optiq.models.topology import block_list


class _Called(Exception):
    """Ends a call of the model at its trunk."""


class _StandIn:
    """Takes the trunk's place for one call: returns a hidden state, or without one notes how it is called and ends the call."""

    def __init__(self, trunk: nn.Module, hidden: mx.array | None = None) -> None:
        self._trunk, self._hidden = trunk, hidden
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        if self._hidden is None:
            self.args, self.kwargs = args, kwargs
            raise _Called
        return self._hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trunk, name)


class Halves:
    """One model, cut before its head.

    Args:
        model: as `optiq.models.load` gives it.

    Attributes:
        trunk: the module that computes hidden states; None for a model in one piece.
        owner: the module that holds trunk and head; None likewise.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.owner, self._name, self.trunk = _trunk_of(model)
        self._places: tuple[int | str, int | str] = (0, 1)  # of tokens and caches among the trunk's arguments
        if self.trunk is not None and not self._called_plainly():
            self.owner, self.trunk = None, None

    @property
    def whole(self) -> bool:
        """Whether the model is one piece, so that there are no hidden states."""
        return self.trunk is None

    def body(self, tokens: mx.array, caches: Any) -> mx.array:
        """Tokens [B, L] to hidden states [B, L, E] (of a model in one piece: logits [B, L, V]); the caches move on."""
        if self.trunk is None:
            return logits_of(self.model(tokens, cache=caches))
        given = dict(zip(self._places, (tokens, caches), strict=True))
        args = [given[place] for place in sorted(place for place in given if isinstance(place, int))]
        return self.trunk(*args, **{place: value for place, value in given.items() if isinstance(place, str)})  # type: ignore[no-any-return]

    def head(self, hidden: mx.array) -> mx.array:
        """Hidden states [B, L, E] to logits [B, L, V]."""
        if self.trunk is None:
            return hidden
        return self._through(_StandIn(self.trunk, hidden), mx.zeros(hidden.shape[:2], mx.int32), None)

    def _through(self, stand_in: _StandIn, tokens: mx.array, caches: Any) -> mx.array:
        assert self.owner is not None
        self.owner[self._name] = stand_in
        try:
            return logits_of(self.model(tokens, cache=caches))
        finally:
            self.owner[self._name] = self.trunk

    def _called_plainly(self) -> bool:
        """Whether the trunk gets the tokens, the caches and nothing else, and where. Evaluates nothing."""
        assert self.trunk is not None
        tokens, caches = mx.zeros((1, 2), mx.int32), [None] * len(block_list(self.model))
        stand_in = _StandIn(self.trunk)
        with contextlib.suppress(_Called):
            self._through(stand_in, tokens, caches)
        all_given = [*enumerate(stand_in.args), *stand_in.kwargs.items()]
        given = {place: value for place, value in all_given if value is not None}
        found = [place for wanted in (tokens, caches) for place, value in given.items() if value is wanted]
        if len(given) != 2 or len(found) != 2 or any(isinstance(place, int) and place > 1 for place in found):
            return False
        self._places = (found[0], found[1])
        return True


def _trunk_of(model: Any) -> tuple[Any, str, Any]:
    """The module that holds the trunk, its name there, and the trunk, whose own entry the list of blocks is."""
    blocks = block_list(model)
    if blocks:
        for _, owner in model.named_modules():
            for name, module in owner.items():
                lists = [value for value in module.values() if isinstance(value, list)] if isinstance(module, nn.Module) else []
                if any(len(value) == len(blocks) and all(a is b for a, b in zip(value, blocks, strict=True)) for value in lists):
                    return owner, name, module
    return None, "", None

"""Which tokens a reply has used and how often, with a way back: what presence, frequency and repetition penalties look at.

Lives on the host and grows with the number of different tokens, not with the vocabulary. Knows no logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Used:
    """The tokens of one reply, in order."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[int, int] = {}  # token -> where it stands in the two below
        self._ids = np.zeros(64, np.int32)
        self._counts = np.zeros(64, np.float32)

    def __len__(self) -> int:
        """How many tokens the reply has, repeated ones included."""
        return len(self._tokens)

    @property
    def ids(self) -> NDArray[np.int32]:
        """The different tokens, in the order of their first use; a view, good until the next change."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of `ids` was used; a view as well."""
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        """Remember one more token."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids, self._counts = (np.concatenate([array, np.zeros_like(array)]) for array in (self._ids, self._counts))
        self._ids[place] = token
        self._counts[place] += 1
        self._tokens.append(token)

    def take_back(self, count: int) -> None:
        """Forget the last tokens; a token that is used no more was the last new one, for later ones are forgotten already."""
        for _ in range(count):
            place = self._places[self._tokens[-1]]
            self._counts[place] -= 1
            if self._counts[place] == 0:
                del self._places[self._tokens[-1]]
            self._tokens.pop()

    def copy(self) -> Used:
        """A second record that goes its own way from here."""
        other = Used()
        other._tokens, other._places = list(self._tokens), dict(self._places)
        other._ids, other._counts = self._ids.copy(), self._counts.copy()
        return other

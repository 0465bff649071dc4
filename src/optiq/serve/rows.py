"""Many rows in one forward pass, each over caches of its own.

A batch is a list of caches as a model's forward pass takes it, one per layer, in which

    attention layers     are `KeyValueRows`: the projections of all rows are one product, attention runs row by row over each
                         row's own cache, of whatever kind, and no row is padded
    recurrent layers     are mlx-lm's `ArraysCache` with the states of all rows side by side; rows join and leave by copies

A row's numbers are therefore those that it has alone. Models whose attention does not go through `optiq.models.arch`
(MLA latents, lists of caches) are run row by row.

A step may read several tokens of each row and keep only the first ones (`looking`, `keep`); a row that has fewer than its
neighbours gets padding behind them, which it never keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from optiq.lora.mounted import Mounted
from optiq.models.caches import Caches, cache_bytes, cache_kind, can_cut, key_value_layers, make_caches
from optiq.models.forward import Halves
from optiq.models.rollback import Verify, lookahead
from optiq.models.rows import KeyValueRows


def side_by_side(model: Any, caches: Caches) -> bool:
    """Whether rows of this model can be one batch."""
    layers = key_value_layers(model)
    attending = {layer.place for layer in layers if not layer.latent}
    return all(place in attending or cache_kind(cache) == "state" for place, cache in enumerate(caches)) and all(
        hasattr(caches[place], "update_and_fetch") for place in attending
    )


class Batch:
    """The rows that decode together.

    Args:
        halves: the model.
        adapters: of the model.

    Attributes:
        width: V, of the logits.
    """

    def __init__(self, halves: Halves, adapters: Mounted) -> None:
        self._halves, self._mounted = halves, adapters
        caches = make_caches(halves.model)
        self._joined = side_by_side(halves.model, caches)
        self._names: list[str] = []
        self._rows: list[Caches] = []  # of joined rows, recurrent layers are in `_states`
        self._adapters: list[str | None] = []
        self._states: dict[int, Any] = {}
        self._state_bytes = 0  # of one row
        self._blank: dict[int, list[tuple[Sequence[int], mx.Dtype]]] = {}  # states before the first token
        hidden = halves.body(mx.array([[0]]), caches)  # for the shapes; never computed
        self.width = int(halves.head(hidden).shape[-1])
        if self._joined:
            places = [place for place, cache in enumerate(caches) if cache_kind(cache) == "state"]
            self._blank = {place: [(array.shape, array.dtype) for array in caches[place].cache] for place in places}
            self._state_bytes = cache_bytes([caches[place] for place in places])

    @property
    def names(self) -> tuple[str, ...]:
        """The rows in order."""
        return tuple(self._names)

    def add(self, name: str, caches: Caches, adapter: str | None = None) -> None:
        """A row joins; its caches belong to the batch from now on."""
        self._names.append(name)
        self._rows.append(caches)
        self._adapters.append(adapter)
        for place, blank in self._blank.items():
            cache = caches[place]
            if cache.empty():
                cache.cache = [mx.zeros(shape, dtype) for shape, dtype in blank]
            if place in self._states:
                self._states[place].extend(cache)
            else:
                self._states[place] = cache

    def remove(self, name: str) -> None:
        """A row leaves, and what it held is freed."""
        row = self._names.index(name)
        del self._names[row], self._rows[row], self._adapters[row]
        if not self._names:
            self._states = {}
        keep = mx.array([other for other in range(len(self._names) + 1) if other != row])
        for state in self._states.values():
            state.filter(keep)

    def forward(self, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """The next tokens [B, L] of all rows, each with its adapter: hidden states [B, L, E] and logits [B, L, V], lazily."""
        if self._joined:
            return self._through(tokens, self._caches(), self._adapters)
        found = [
            self._through(tokens[row : row + 1], caches, [adapter])
            for row, (caches, adapter) in enumerate(zip(self._rows, self._adapters, strict=True))
        ]
        return mx.concatenate([hidden for hidden, _ in found]), mx.concatenate([logits for _, logits in found])

    def lookahead(self) -> list[int]:
        """How many tokens of a longer step may stay, per row; 0: a row for which there is no such step."""
        own = [[cache for place, cache in enumerate(row) if place not in self._states] for row in self._rows]
        if not self._joined or not all(map(can_cut, own)):
            return [0] * len(own)
        return [lookahead(row) for row in own]

    def looking(self, length: int) -> Verify:
        """A context for a step of so many tokens per row, of which `keep` says how many stay."""
        return Verify(self._caches(), length)

    def keep(self, step: Verify, tokens: mx.array, counts: Sequence[int]) -> None:
        """Keep the first tokens of a step, so many of each row.

        Args:
            step: which `forward` ran in.
            tokens: [B, L], of the step.
            counts: from 1 to L.
        """
        if step.accept(counts):
            return
        most = max(counts)  # layers that cannot go half way stand where they stood, and read those tokens again
        for state in self._states.values():
            state.prepare(lengths=list(counts))
        caches = self._caches()
        self._through(tokens[:, :most], caches, self._adapters)
        for place, cache in enumerate(caches):
            if place in self._states:
                cache.finalize()
            else:
                cache.trim_rows([most - count for count in counts])
        mx.eval(self.states())

    def states(self) -> list[mx.array]:
        """The recurrent states, which a step leaves lazily."""
        return [array for state in self._states.values() for array in state.cache if array is not None]

    @property
    def bytes(self) -> int:
        """What the rows hold."""
        own = sum(int(cache.nbytes) for row in self._rows for place, cache in enumerate(row) if place not in self._states)
        return own + len(self._rows) * self._state_bytes

    def _through(self, tokens: mx.array, caches: Caches, adapters: Sequence[str | None]) -> tuple[mx.array, mx.array]:
        with self._mounted.rows(adapters):
            hidden = self._halves.body(tokens, caches)
            return hidden, self._halves.head(hidden)

    def _caches(self) -> Caches:
        found: Caches = []
        for place in range(len(self._rows[0])):
            state = self._states.get(place)
            found.append(KeyValueRows([row[place] for row in self._rows]) if state is None else state)
        return found

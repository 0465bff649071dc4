"""Many rows in one forward pass, each over caches of its own.

A batch is a list of caches as a model's forward pass takes it, one per layer, in which

    attention layers     are `KeyValueRows`: the projections of all rows are one product, attention runs row by row over each
                         row's own cache, of whatever kind, and no row is padded
    recurrent layers     are mlx-lm's `ArraysCache` with the states of all rows side by side; rows join and leave by copies

A row's numbers are therefore those that it has alone. Models whose attention does not go through `optiq.models.arch`
(MLA latents, lists of caches) are run row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from optiq.lora.mounted import Mounted
from optiq.models import arch
from optiq.models.caches import Caches, cache_kind, key_value_layers


@dataclass(frozen=True)
class RowMasks:
    """What each row's own cache makes of the mask that a model asks for."""

    masks: tuple[mx.array | str | None, ...]


class KeyValueRows:
    """The caches of one attention layer, one per row, behind the protocol of `optiq.kv.cache`."""

    def __init__(self, caches: Sequence[Any]) -> None:
        self.caches = list(caches)
        self._fresh: list[tuple[mx.array, mx.array]] = []

    @property
    def offset(self) -> Any:
        """Tokens seen, int32 [B]; a number for a single row."""
        if len(self.caches) == 1:
            return self.caches[0].offset
        return mx.array([cache.offset for cache in self.caches], mx.int32)

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:
        """None where no row needs one, else a `RowMasks`."""
        masks = tuple(cache.make_mask(N, window_size=window_size, return_array=return_array) for cache in self.caches)
        return None if all(mask is None for mask in masks) else RowMasks(masks)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Row i of keys and values [B, G, L, D] goes to cache i; what comes back is only what came in."""
        self._fresh = [
            cache.update_and_fetch(keys[row : row + 1], values[row : row + 1]) for row, cache in enumerate(self.caches)
        ]
        return keys, values

    def attend(self, queries: mx.array, scale: float, mask: Any = None, sinks: mx.array | None = None) -> mx.array:
        """Attention of queries [B, H, L, D], each row over what its cache holds."""
        masks = mask.masks if isinstance(mask, RowMasks) else (mask,) * len(self.caches)
        attention = arch.shared("base").scaled_dot_product_attention
        found = []
        for row, (cache, (k, v), own) in enumerate(zip(self.caches, self._fresh, masks, strict=True)):
            found.append(attention(queries[row : row + 1], k, v, cache=cache, scale=scale, mask=own, sinks=sinks))
        self._fresh = []
        return found[0] if len(found) == 1 else mx.concatenate(found)


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
        joined: whether rows run in one forward pass (`side_by_side`).
    """

    def __init__(self, joined: bool) -> None:
        self._joined = joined
        self._names: list[str] = []
        self._rows: list[Caches] = []  # of joined rows, recurrent layers are in `_states`
        self._adapters: list[str | None] = []
        self._states: dict[int, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The rows in order."""
        return tuple(self._names)

    def add(self, name: str, caches: Caches, adapter: str | None = None) -> None:
        """A row joins; its caches belong to the batch from now on."""
        self._names.append(name)
        self._rows.append(caches)
        self._adapters.append(adapter)
        if not self._joined:
            return
        for place, cache in enumerate(caches):
            if cache_kind(cache) != "state":
                continue
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

    def forward(self, model: Any, tokens: mx.array, adapters: Mounted) -> mx.array:
        """Logits [B, L, V] of the next tokens [B, L] of all rows, lazily, each with its adapter."""
        if self._joined:
            with adapters.rows(self._adapters):
                return model(tokens, cache=self._caches())  # type: ignore[no-any-return]
        found = []
        for row, (caches, adapter) in enumerate(zip(self._rows, self._adapters, strict=True)):
            with adapters.rows([adapter]):
                found.append(model(tokens[row : row + 1], cache=caches))
        return mx.concatenate(found)

    def arrays(self) -> list[mx.array]:
        """The recurrent states, which a step leaves lazily."""
        return [array for state in self._states.values() for array in state.cache if array is not None]

    @property
    def bytes(self) -> int:
        """What the rows hold."""
        own = sum(int(cache.nbytes) for row in self._rows for place, cache in enumerate(row) if place not in self._states)
        return own + sum(int(state.nbytes) for state in self._states.values())

    def _caches(self) -> Caches:
        found: Caches = []
        for place in range(len(self._rows[0])):
            state = self._states.get(place)
            found.append(KeyValueRows([row[place] for row in self._rows]) if state is None else state)
        return found

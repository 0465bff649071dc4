"""One attention layer's caches for a batch of rows, each row over a cache of its own, of whatever kind.

The projections of all rows are one product; attention runs row by row, so no row is padded at its beginning and a row's numbers
are those that it has alone. Rows may be cut by different lengths. Knows the caches by their protocol (`optiq.kv.cache`) and
attention through `optiq.models.arch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from optiq.models import arch
from optiq.models.caches import can_cut


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

    @property
    def cuttable(self) -> bool:
        """Whether every row can drop its last tokens."""
        return can_cut(self.caches)

    def trim(self, count: int) -> None:
        """Drop the last tokens of every row."""
        self.trim_rows([count] * len(self.caches))

    def trim_rows(self, counts: Sequence[int]) -> None:
        """Drop the last tokens of each row, so many of each."""
        for cache, count in zip(self.caches, counts, strict=True):
            if count:
                cache.trim(count)

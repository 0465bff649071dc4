"""The cache protocol over packed columns: what models, mlx-lm's helpers and our own engine call.

    update_and_fetch(keys, values)      take in new tokens; keys and values of all tokens, as lazy arrays in the order of time
    attend(queries, scale, mask, sinks) attention over what is held; called by `optiq.models.arch` and a patched mlx-lm in
                                        place of attention over those arrays, which are then never computed
    offset, size(), empty(), make_mask(N, window_size, return_array), is_trimmable(), trim(n), nbytes
    state, from_state(state), copy()    saving; state is arrays and one text, as `mlx_lm.models.cache.save_prompt_cache` takes it
    merge(caches), extend(other), filter(rows), extract(row), prepare(...), finalize()      batches

There is no attribute `bits`, which stock attention would take for its own kind of quantized cache.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Self

import mlx.core as mx

from optiq.errors import FormatError
from optiq.kernels import attention, coded_attention, native, packed
from optiq.kernels.fused import FEW_ROWS
from optiq.kernels.packed import Packed
from optiq.kv.batch import Batched
from optiq.kv.columns import Columns
from optiq.kv.places import Places, causal, to_stored
from optiq.kv.places import gather as gather_columns
from optiq.kv.recipe import Recipe
from optiq.kv.rows import Affine, Rotated, Statistics

_COUNTS = ("_packed", "_dropped", "_padding", "_seen", "_centred", "_late")


class PackedCache(Batched):
    """Keys and values of one layer by a recipe; arguments as `Columns`."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Take in keys [B, G, L, D] and values [B, G, L, Dv]; all of them, lazily, in the order of time."""
        self._append(keys, values)
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """All keys [B, G, S, D] and values [B, G, S, Dv] in full precision and in the order of time, lazily.

        Keys are without the mean that all keys of a row have lost.
        """
        assert self._full is not None and self._rows is not None
        places = self._places()
        if not places.packed:
            return self._full
        found = []
        for rows, buffers, full in zip(self._rows, self._buffers, self._full, strict=True):
            old = rows.unpack(self._view(buffers, self._packed), full.dtype)
            if places.even:
                found.append(mx.concatenate([full[:, :, : places.sinks], old, full[:, :, places.sinks :]], 2))
            else:
                found.append(gather_columns(mx.concatenate([old, full], 2), places.stored()))
        return found[0], found[1]

    def attend(
        self, queries: mx.array, scale: float, mask: mx.array | str | None = None, sinks: mx.array | None = None
    ) -> mx.array:
        """Attention of the newest tokens' queries [B, H, L, D] over all that is held; [B, H, L, Dv].

        Args:
            scale: of the scores.
            mask: ``"causal"``, None (all are seen), or an array in the order of time that broadcasts to [B, H, L, S].
            sinks: [H], one more score per head that has no value.
        """
        places, length = self._places(), queries.shape[2]
        if self._one_by_one(queries, mask, sinks):
            each = [self._attend_packed(queries[:, :, n : n + 1], scale, None, None, 1, length - 1 - n) for n in range(length)]
            return mx.concatenate(each, axis=2)
        if self._knows(mask, places, length):
            mask = None if length == 1 else "causal"
        elif mask is None and length > 1:
            mask = mx.ones((1, 1, length, places.columns), mx.bool_)
        # Queries that are packed already (tail 0) see themselves as they were packed, among the full-precision tokens.
        newest = min(max(0, length - (places.full - places.sinks)), places.packed)
        whole = newest == places.packed or sinks is not None or not self._over_rotated(queries, mask)
        array = isinstance(mask, mx.array)
        if whole or max(places.padding) > places.packed - newest:
            mask = mask if array or places.even else causal(places.timely, length)
        if whole:
            if places.packed and not places.full and sinks is None and self._over_affine(queries):
                return self._attend_affine(queries, scale, mask)
            k, v = self.keys_and_values()
            return attention.attention(queries, k, v, scale=scale, mask=mask, sinks=sinks)
        stored = to_stored(mask, places, newest) if isinstance(mask, mx.array) else None
        starts = None if stored is not None or places.even else mx.array(places.padding, mx.int32)
        return self._attend_packed(queries, scale, stored, starts, newest)

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> mx.array | str | None:
        """The mask of the next N tokens, in the order of time, as mlx-lm's caches make it: before `update_and_fetch`."""
        now = self._places()
        kept = min(now.columns, self.window - 1) if self.window and self._late is None else now.columns
        padding = tuple(max(0, p - (now.columns - kept)) for p in now.padding)
        places = Places(padding, 0, kept + N, 0)
        window = min(window_size or self.window, self.window or window_size or 0)
        if not places.even or return_array or (window and kept + N > window):
            return causal(places, N, window)
        return None if N == 1 else "causal"

    @property
    def state(self) -> Any:
        """A text with the counts, then arrays: buffers of keys and of values, full-precision part, mean, statistics."""
        self._owned = False  # whoever reads it may hold the arrays
        header: dict[str, Any] = {name[1:]: getattr(self, name) for name in _COUNTS}
        header |= {"recipe": dataclasses.asdict(self.recipe), "still": self.still, "window": self.window}
        parts: list[Any] = [None, None, None, None]
        if self._full is not None:
            header["full"] = [[*x.shape, str(x.dtype).rpartition(".")[2]] for x in self._full]
            full = list(self._full) if self._full[0].shape[2] else None  # files hold no empty arrays
            parts = [self._buffers[0] or None, self._buffers[1] or None, full, self._mean]
        known = [self.known.key_mean, self.known.key_scale, self.known.value_mean]
        return [json.dumps(header), *parts, known]

    @state.setter
    def state(self, value: Any) -> None:
        try:
            text, keys, values, full, mean, known = value
            header = json.loads(text)
            recipe = Recipe(**header.pop("recipe"))
            still, window, shapes = header.pop("still"), header.pop("window"), header.pop("full", None)
            counts = {name: header[name[1:]] for name in _COUNTS}
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(f"the state of a key/value cache cannot be read ({error}); make the file again") from None
        Columns.__init__(self, recipe, Statistics(*known), still, window)
        self.__dict__.update(counts)
        if shapes is not None:
            (batch, groups, length, k_width, k_type), (*_, v_width, v_type) = shapes
            self._make_rows(groups, k_width, v_width, getattr(mx, k_type), getattr(mx, v_type))
            if full is None:
                full = [mx.zeros(shape[:4], getattr(mx, shape[4])) for shape in shapes]
            self._full = (full[0], full[1])
            self._buffers, self._mean = (list(keys or []), list(values or [])), mean

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """A cache with this state."""
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    def _over_affine(self, queries: mx.array) -> bool:
        """Whether attention over affine codes fits: both sides are such, and queries few."""
        assert self._rows is not None and self._full is not None
        k, v = self._rows
        return isinstance(k, Affine) and isinstance(v, Affine) and coded_attention.few(queries, self._full[0].shape[1])

    def _attend_affine(self, queries: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
        assert self._rows is not None
        keys, values = (
            rows.coded(self._view(buffers, self._packed))
            for rows, buffers in zip(self._rows, self._buffers, strict=True)
            if isinstance(rows, Affine)
        )
        return coded_attention.attend(queries, keys, values, scale=scale, mask=mask)

    def _over_rotated(self, queries: mx.array, mask: mx.array | str | None) -> bool:
        """Whether attention over packed tokens fits: both sides rotated, of one width, and no additive mask.

        Without native kernels many queries are better served by dense keys and values and the stock kernel.
        """
        assert self._rows is not None and self._full is not None
        k, v = self._rows
        seen = not isinstance(mask, mx.array) or mask.dtype == mx.bool_
        rotated = isinstance(k, Rotated) and isinstance(v, Rotated) and k.width == v.width
        few = native.module() is not None or coded_attention.few(queries, self._full[0].shape[1])
        return rotated and seen and few

    def _one_by_one(self, queries: mx.array, mask: mx.array | str | None, sinks: mx.array | None) -> bool:
        """Whether a few tokens that are packed already (tail 0) attend one by one, for then they have the bits of single steps.

        The newest packed token counts as a full-precision one; of a step as a whole, all of its tokens would.
        """
        length = queries.shape[2]
        few = 1 < length <= min(FEW_ROWS, self._packed - 1) and self._padding is None
        return not self.recipe.tail and few and mask == "causal" and sinks is None and self._over_rotated(queries, mask)

    def _knows(self, mask: mx.array | str | None, places: Places, length: int) -> bool:
        """Whether a mask is what `make_mask` made for these columns, which says no more than causal and padding do."""
        if not isinstance(mask, mx.array) or places.even:
            return False
        if self.window and (length > 1 or places.columns > self.window):  # then it hides what has left the window
            return False
        return mask is causal(places.timely, length, self.window)

    def _attend_packed(
        self, queries: mx.array, scale: float, mask: mx.array | None, starts: mx.array | None, newest: int, unseen: int = 0
    ) -> mx.array:
        """`packed.attend`, with the newest packed tokens given as full-precision ones, but for the last `unseen`."""
        assert self._full is not None and self._rows is not None
        seen, sinks, sides = self._packed - unseen, self._sinks, []
        end = seen - newest
        for rows, buffers, full in zip(self._rows, self._buffers, self._full, strict=True):
            assert isinstance(rows, Rotated)
            if newest:
                fresh = rows.unpack([buffer[:, :, end:seen] for buffer in buffers], full.dtype)
                full = mx.concatenate([full[:, :, :sinks], fresh, full[:, :, sinks:]], 2) if full.shape[2] else fresh
            sides.append((Packed(*self._view(buffers, end)), full, rows.form))
        (keys, k, key_form), (values, v, value_form) = sides
        return packed.attend(queries, keys, values, k, v, key_form, value_form, scale=scale, starts=starts, mask=mask)

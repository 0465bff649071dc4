"""Whatever is done to a cache of any kind, its rows keep their tokens, and attention is over these."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optiq.kv import columns
from optiq.kv.cache import PackedCache
from optiq.kv.rows import Rotated
from optiq.kv.saving import load_caches, save_caches
from token_rows import ERROR, KINDS, NEAR, WIDTH, Tokens, dense, errors

STILL = 8  # channels below turn with the position


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "PACK_STEP", 4)
    monkeypatch.setattr(columns, "GROW_STEP", 16)
    monkeypatch.setattr(columns, "LEAST_FOR_MEAN", 4)


class Rows:
    """A batch, and what each of its rows was given."""

    def __init__(self, kind: str, lengths: list[int], seed: int, window: int = 0) -> None:
        self.kind, self.window, self.tokens = kind, window, Tokens(seed)
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []
        singles = []
        for length in lengths:
            cache, given_k, given_v = self.fresh(), [], []
            for part in filter(None, (length // 2, length - length // 2)):
                _, k, v = self.tokens.draw(1, part)
                cache.update_and_fetch(k, v)
                given_k.append(k)
                given_v.append(v)
            empty = mx.zeros((1, 2, 0, WIDTH))
            self.keys.append(mx.concatenate([empty, *given_k], 2))
            self.values.append(mx.concatenate([empty, *given_v], 2))
            singles.append(cache)
        self.cache = PackedCache.merge(singles)

    def fresh(self) -> PackedCache:
        return PackedCache(KINDS[self.kind], still=STILL, window=self.window)

    def append(self, length: int) -> None:
        """New tokens in all rows, and attention over all."""
        q, k, v = self.tokens.draw(len(self.keys), length)
        mask = self.cache.make_mask(length)
        self.cache.update_and_fetch(k, v)
        self.keys = [mx.concatenate([old, k[i : i + 1]], 2) for i, old in enumerate(self.keys)]
        self.values = [mx.concatenate([old, v[i : i + 1]], 2) for i, old in enumerate(self.values)]
        found = self.cache.attend(q, 0.2, mask)
        np.testing.assert_allclose(np.array(found), np.array(dense(self.cache, q, mask)), atol=NEAR)
        if not self.window and isinstance(self.cache._rows[0], Rotated):  # it knows its padding without a mask too
            plain = self.cache.attend(q, 0.2, None if length == 1 else "causal")
            np.testing.assert_allclose(np.array(plain), np.array(found), atol=NEAR)

    def trim(self, count: int) -> None:
        count = min(count, *(k.shape[2] for k in self.keys)) if self.keys else 0
        if not count or not self.cache.is_trimmable():
            return
        assert self.cache.trim(count) == count
        self.keys = [k[:, :, : k.shape[2] - count] for k in self.keys]
        self.values = [v[:, :, : v.shape[2] - count] for v in self.values]

    def late(self, lengths: list[int]) -> None:
        """Prompts of different lengths, padded behind, in two steps; rows are even again after `finalize`."""
        counts = [lengths[i % len(lengths)] for i in range(len(self.keys))]
        longest = max(counts)
        if not longest:
            return
        q, k, v = self.tokens.draw(len(counts), longest)
        self.cache.prepare(lengths=counts, right_padding=[longest - count for count in counts])
        for part in (slice(0, longest // 2), slice(longest // 2, longest)):
            if part.start < part.stop:
                mask = self.cache.make_mask(part.stop - part.start)
                self.cache.update_and_fetch(k[:, :, part], v[:, :, part])
                found = self.cache.attend(q[:, :, part], 0.2, mask)
                np.testing.assert_allclose(np.array(found), np.array(dense(self.cache, q[:, :, part], mask)), atol=NEAR)
        self.cache.finalize()
        for i, count in enumerate(counts):
            self.keys[i] = mx.concatenate([self.keys[i], k[i : i + 1, :, :count]], 2)
            self.values[i] = mx.concatenate([self.values[i], v[i : i + 1, :, :count]], 2)

    def extend(self, lengths: list[int], seed: int) -> None:
        other = Rows(self.kind, lengths, seed, self.window)
        self.cache.extend(other.cache)
        self.keys, self.values = self.keys + other.keys, self.values + other.values

    def filter(self, rows: list[int]) -> None:
        chosen = sorted({row % len(self.keys) for row in rows})
        self.cache.filter(chosen)
        self.keys, self.values = [self.keys[i] for i in chosen], [self.values[i] for i in chosen]
        assert min(self.cache._padding) == 0 and self.cache.size() == max(
            self.cache.extract(i).size() for i in range(len(chosen))
        )

    def save(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache.safetensors"
            save_caches(path, [self.cache])
            (self.cache,), _ = load_caches(path)

    def copy(self) -> None:
        before = self.cache
        self.cache = copy.deepcopy(before)
        before.filter([0])  # what happens to the other one does not matter

    def check(self) -> None:
        """Each row holds its tokens, in order, to the precision of its widths."""
        recipe = KINDS[self.kind]
        for index, (k, v) in enumerate(zip(self.keys, self.values, strict=True)):
            row = self.cache.extract(index)
            length = k.shape[2]
            assert int(np.array(self.cache.offset)[index]) == row.offset == length
            if row.empty() or not length:
                continue
            found_k, found_v = row.keys_and_values()
            seen = found_k.shape[2]
            assert seen == length if not self.window else seen >= min(length, self.window - 1)
            if row._mean is not None:  # what all keys have lost
                found_k = found_k + row._mean
                assert not np.array(row._mean[..., :STILL]).any()
            bound = max(ERROR[recipe.k_bits], ERROR[recipe.v_bits])
            assert errors(found_k, k[:, :, length - seen :]).max() < bound * 1.5  # keys have a mean: relative to it smaller
            assert errors(found_v, v[:, :, length - seen :]).max() < bound
            newest = min(recipe.tail, seen) if row._packed <= max(0, length - recipe.sinks - recipe.tail) else 0
            if newest and not self.trimmed:
                assert errors(found_v[:, :, -newest:], v[:, :, -newest:]).max() == 0
            held = sum(a.nbytes for side in row._buffers for a in side) + sum(a.nbytes for a in row._full or ())
            assert row.nbytes == held + (0 if row._mean is None else row._mean.nbytes)

    trimmed = False


lengths = st.lists(st.integers(0, 40), min_size=1, max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from([1, 1, 1, 2, 5, 23])),
        st.tuples(st.just("trim"), st.integers(1, 30)),
        st.tuples(st.just("extend"), lengths),
        st.tuples(st.just("late"), lengths),
        st.tuples(st.just("filter"), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
        st.tuples(st.just("save"), st.none()),
        st.tuples(st.just("copy"), st.none()),
    ),
    max_size=7,
)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("window", [0, 12])
@pytest.mark.parametrize("kind", KINDS)
@few
@example(first=[0, 12], todo=[("late", [0, 1])], seed=0)  # one token, while nothing may leave a window
@given(first=lengths, todo=steps, seed=st.integers(0, 3))
def test_rows_keep_their_tokens(kind: str, window: int, first: list[int], todo: list[tuple[str, object]], seed: int) -> None:
    rows = Rows(kind, first, seed, window)
    rows.check()
    for name, argument in todo:
        if name == "extend":
            rows.extend(argument, seed + 1)  # type: ignore[arg-type]
        else:
            rows.trimmed |= name == "trim"
            getattr(rows, name)(*([] if argument is None else [argument]))
        rows.check()

"""Packed vectors: each native operation against its definition at every instruction level, errors as stated, equal bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.floats import array, levels, threads, wide
from tests.floats import level as at_level

from optiq.kernels import native, packed
from optiq.kernels.attention import FEW_QUERIES
from optiq.kernels.codebook import Codebook, lloyd, lloyd_max, uniform
from optiq.kernels.packed import Form, Packed
from optiq.kernels.rotation import signs, transform

BOOKS = (lloyd(1), lloyd(2), lloyd(3), lloyd(4), uniform(3), uniform(4), uniform(5), uniform(6), uniform(8))
WIDTHS = (64, 80, 96, 128, 256, 8, 24, 32, 192)
# Of the largest value: fixed-point numbers (native/kernels/packed.h), and the type's rounding of the full-precision part.
TOLERANCE = {mx.float32: 5e-4, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
quick_settings = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
needs_native = pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")


@pytest.fixture(params=levels() or ["reference"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    if native.module() is None:
        yield request.param
        return
    with at_level(request.param):
        yield request.param


def values(seed: int, *shape: int, outliers: bool = False) -> np.ndarray:
    """Normal numbers; with four channels twenty times larger, and a vector of zeros."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if outliers and x.size:
        x[..., :: max(1, shape[-1] // 4)] *= 20
        x[..., -1, :] = 0
    return x


def form(book: Codebook, groups: int, width: int, *, seed: int = 0, scaling: Any = "fit", mean: bool = False) -> Form:
    """Signs with a factor for each channel folded in."""
    factor = np.exp(0.3 * values(seed, groups, width))
    sign = np.array(signs(width, seed))
    shift = mx.array(values(seed + 1, groups, width)) if mean else None
    return Form(book, mx.array(factor * sign), mx.array(sign / factor), scaling, shift)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    tokens, full = draw(st.one_of(st.sampled_from([0, 1, 255, 256, 257]), st.integers(0, 700))), draw(st.integers(0, 40))
    return {
        "batch": draw(st.integers(1, 3)),
        "groups": draw(st.integers(1, 2)),
        "share": draw(st.sampled_from([1, 2, 3, 4, 8])),
        "length": draw(st.one_of(st.just(1), st.integers(1, FEW_QUERIES))),
        "tokens": tokens,
        "full": full if tokens else max(1, full),
        "width": draw(st.sampled_from(WIDTHS)),
        "books": (draw(st.sampled_from(BOOKS)), draw(st.sampled_from(BOOKS))),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "mean": draw(st.booleans()),
        "outliers": draw(st.booleans()),
        "see": draw(st.sampled_from(["all", "starts", "mask"])),
        "slack": draw(st.sampled_from([0, 7])),
        "seed": draw(st.integers(0, 99)),
    }


def longer(x: mx.array, slack: int) -> mx.array:
    """x [B, G, L, ...] as a slice of a buffer with more tokens."""
    return mx.pad(x, [(0, 0), (0, 0), (0, slack), *[(0, 0)] * (x.ndim - 3)])[:, :, : x.shape[2]] if slack and x.size else x


def made(c: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `attend` for a case."""
    seed, batch, groups, tokens, full, width = (c[name] for name in ("seed", "batch", "groups", "tokens", "full", "width"))
    heads, dtype = groups * c["share"], c["dtype"]
    q = mx.array(values(seed, batch, heads, c["length"], width)).astype(dtype)
    k, v = (mx.array(values(seed + i, batch, groups, full, width)).astype(dtype) for i in (1, 2))
    forms = (form(c["books"][0], groups, width), form(c["books"][1], groups, width, seed=5, scaling="norm", mean=c["mean"]))
    stored = []
    for i, kind in enumerate(forms):
        x = mx.array(values(seed + 3 + i, batch, groups, max(1, tokens), width, outliers=c["outliers"]))
        made = packed.pack_reference(x, kind)
        stored.append(Packed(*(longer(y[:, :, :tokens], c["slack"]) for y in made)))
    more: dict[str, Any] = {"scale": width**-0.5}
    rng = np.random.default_rng(seed)
    if c["see"] == "starts" and full >= c["length"]:
        more["starts"] = mx.array(rng.integers(0, tokens + 1, batch).astype(np.int32))
    elif c["see"] == "mask" or full < c["length"]:
        seen = rng.random((batch, 1, c["length"], tokens + full)) < 0.5
        seen[..., 0] = True
        more["mask"] = mx.array(seen)
    return (q, *stored, longer(k, c["slack"]), longer(v, c["slack"]), *forms), more


def assert_close(found: mx.array, expected: mx.array, tolerance: float) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    worst = np.abs(wide(found) - wide(expected)).max() / max(1e-3, np.abs(wide(expected)).max())
    assert worst <= tolerance, f"off by {worst:.2e}"


def codes_of(x: Packed, book: Codebook) -> np.ndarray:
    return np.array(packed.unpack_bits(x.codes, book.bits)).astype(int)


def assert_packed_alike(found: Packed, x: mx.array, kind: Form) -> None:
    """Codes as the definition's, except where a coordinate lies on a bound; then the scale of least error moves with it."""
    expected = packed.pack_reference(x, kind)
    assert found.codes.shape == expected.codes.shape and found.scales.dtype == mx.bfloat16
    book = kind.book
    ours, theirs = codes_of(found, book), codes_of(expected, book)
    y = wide(transform(x.astype(mx.float32) * kind.diagonal[:, None]))
    step = np.sqrt((y**2).mean(-1, keepdims=True)) * book.unit
    z = y / np.where(step > 0, step, 1)
    bounds = np.array([*book.bounds, np.inf])
    moved = ours != theirs
    assert np.abs(ours - theirs)[moved].sum() == moved.sum()
    assert (np.abs(z - bounds[np.minimum(ours, theirs)])[moved] <= 1e-5 * np.maximum(1, np.abs(z[moved]))).all()
    size, change = wide(expected.scales), np.abs(wide(found.scales) - wide(expected.scales))
    assert (change <= 2.0**-7 * size).all()
    assert (change[~moved.any(-1)] == 0).mean() > 0.95  # else float32 on the edge of a bfloat16


@quick_settings
@given(
    case=cases(),
    layout=st.sampled_from(["dense", "slice", "transposed", "gaps"]),
    scaling=st.sampled_from(["norm", "fit", "exact", "search"]),
)
def test_packing_is_that_of_the_definition(level: str, case: dict[str, Any], layout: str, scaling: Any) -> None:
    kind = form(case["books"][0], case["groups"], case["width"], scaling=scaling)
    x = values(case["seed"], case["batch"], case["groups"], case["length"], case["width"], outliers=case["outliers"])
    given = array(x, case["dtype"], layout)
    assert_packed_alike(packed.pack(given, kind), given, kind)


@pytest.mark.parametrize("scaling", ["norm", "fit", "exact", "search"])
def test_vectors_of_zeros_have_scale_zero(level: str, scaling: Any) -> None:
    for book in BOOKS:
        found = packed.pack(mx.zeros((1, 1, 3, 80)), form(book, 1, 80, scaling=scaling))
        assert found.scales.tolist() == [[[0.0, 0.0, 0.0]]]
        assert not wide(packed.unpack(found, form(book, 1, 80))).any()


@quick_settings
@given(case=cases(), start=st.integers(0, 9))
def test_storing_writes_these_tokens_and_no_others(level: str, case: dict[str, Any], start: int) -> None:
    batch, groups, length, width = (case[name] for name in ("batch", "groups", "length", "width"))
    kind = form(case["books"][0], groups, width)
    x = mx.array(values(1, batch, groups, length, width)).astype(case["dtype"])
    before = packed.pack_reference(mx.array(values(2, batch, groups, length + 12, width)), kind)
    kept = np.array(before.codes), wide(before.scales)
    found = packed.store(before, start, x, kind)
    expected = packed.pack(x, kind)
    for ours, new, old in zip((np.array(found.codes), wide(found.scales)), expected, kept, strict=True):
        end = start + length
        np.testing.assert_array_equal(ours[:, :, start:end], np.array(new) if new.dtype == mx.uint8 else wide(new))
        np.testing.assert_array_equal(ours[:, :, :start], old[:, :, :start])
        np.testing.assert_array_equal(ours[:, :, end:], old[:, :, end:])


@needs_native
def test_storing_keeps_the_place_in_memory() -> None:
    """A thousand steps into one buffer take the memory of one buffer."""
    kind = form(lloyd(3), 2, 128)
    buffer = Packed(mx.zeros((1, 2, 40_000, 48), mx.uint8), mx.zeros((1, 2, 40_000), mx.bfloat16))
    x = mx.array(values(0, 1, 2, 1, 128))
    mx.eval(buffer, x)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for i in range(20):
        buffer = packed.store(buffer, i, x, kind)
        read = packed.unpack(Packed(*(y[:, :, : i + 1] for y in buffer)), kind)
        mx.async_eval(read)  # type: ignore[no-untyped-call]
    mx.eval(read, buffer)
    assert mx.get_peak_memory() - before < 1_000_000
    assert mx.array_equal(read[:, :, 0], read[:, :, 19])


@quick_settings
@given(case=cases())
def test_unpacking_is_that_of_the_definition(level: str, case: dict[str, Any]) -> None:
    kind = form(case["books"][0], case["groups"], case["width"], mean=case["mean"])
    x = mx.array(values(case["seed"], case["batch"], case["groups"], 9, case["width"], outliers=case["outliers"]))
    stored = Packed(*(longer(y, case["slack"]) for y in packed.pack_reference(x, kind)))
    found = packed.unpack(stored, kind, case["dtype"])
    unit = {mx.float32: 2e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}[case["dtype"]]
    assert_close(found, packed.unpack_reference(stored, kind, case["dtype"]), unit)


@quick_settings
@given(case=cases())
def test_attention_is_that_of_the_definition(level: str, case: dict[str, Any]) -> None:
    arguments, more = made(case)
    expected = packed.attend_reference(*arguments, **more)
    larger = 10 if case["outliers"] else 1  # scores, and so their errors
    assert_close(packed.attend(*arguments, **more), expected, larger * TOLERANCE[case["dtype"]])


@settings(quick_settings, max_examples=15)
@given(case=cases(), length=st.integers(FEW_QUERIES + 1, 50))
def test_many_queries_are_those_of_the_definition(level: str, case: dict[str, Any], length: int) -> None:
    plain = case["dtype"] == mx.float32  # unpacked keys are rounded to the type of q
    arguments, more = made({**case, "length": length, "full": length + case["full"], "outliers": plain and case["outliers"]})
    expected = packed.attend_reference(*arguments, **more)
    larger = 10 if plain and case["outliers"] else 1
    assert_close(packed.attend(*arguments, **more), expected, larger * TOLERANCE[case["dtype"]])


@pytest.mark.parametrize("width", [64, 80, 256])
@pytest.mark.parametrize("sharp", [0.1, 1.0, 8.0])
def test_the_error_is_as_stated(level: str, width: int, sharp: float) -> None:
    """Against float64: within the bound of native/kernels/packed.h, for one block of packed tokens alone."""
    tokens, groups, length = 200, 2, 3
    forms = form(lloyd(4), groups, width), form(lloyd(3), groups, width, seed=5)
    stored = [packed.pack_reference(mx.array(values(i, 1, groups, tokens, width)), kind) for i, kind in enumerate(forms)]
    q, none = mx.array(values(7, 1, 2 * groups, length, width)), mx.zeros((1, groups, 0, width))
    mask = mx.ones((1, 1, length, tokens), mx.bool_)
    rest: tuple[Any, ...] = (*stored, none, none, *forms)
    found = packed.attend(q, *rest, scale=sharp * width**-0.5, mask=mask)
    keys, vectors = (wide(packed.unpack_rotated(x, kind.book)) for x, kind in zip(stored, forms, strict=True))
    rotated = wide(transform(q.reshape(1, groups, 2, length, width) * forms[0].undo[:, None, None]))
    scores = sharp * width**-0.5 * rotated @ keys.swapaxes(2, 3)[:, :, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    sums = weights @ vectors[:, :, None]
    exact = wide(transform(mx.array(sums.astype(np.float32))) * forms[1].undo[:, None, None]).reshape(found.shape)
    off = sharp * width**-0.5 * np.abs(rotated).max(-1) / 32639 / 2 * np.abs(keys).sum(-1).max()  # of a score
    scales = wide(stored[1].scales)[:, :, None, None]
    product = (
        (weights * scales).max(-1) / 32639 / 2 * np.abs(vectors / scales.swapaxes(2, 3).swapaxes(3, 4)[:, :, 0]).sum(2).max()
    )
    bound = 2 * off * np.sqrt((np.abs(vectors) ** 2).sum(-1)).max() + product * np.sqrt(width)
    limit = bound.max() * np.abs(wide(forms[1].undo)).max() + 4e-6 * np.abs(exact).max()
    worst = float(np.abs(wide(found) - exact).max())
    assert worst <= limit and worst <= 1e-4 * max(1, sharp) * float(np.abs(exact).max())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("outliers", [False, True])
def test_distortion_is_that_of_lloyd_and_max(bits: int, width: int, outliers: bool) -> None:
    x = np.random.default_rng(bits).standard_normal((1, 1, 4096, width)).astype(np.float32)
    if outliers:
        x[..., [1, 9, 30, 50]] *= 20
    one = mx.ones((1, width)) * signs(width, 3)
    ideal = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]
    assert len(lloyd_max(bits)) == 2**bits
    for scaling in ("norm", "fit"):
        kind = Form(lloyd(bits), one, one, scaling)
        got = wide(packed.unpack(packed.pack(mx.array(x), kind), kind))
        assert ((got - x) ** 2).sum() / (x**2).sum() <= 1.03 * ideal


@needs_native
@pytest.mark.parametrize("books", [(lloyd(3), lloyd(3)), (lloyd(4), uniform(8)), (uniform(5), lloyd(1))])
@pytest.mark.parametrize("shape", [(2, 4, 256), (1, 8, 128), (2, 1, 80), (1, 2, 96)])
def test_a_row_has_its_own_bits(level: str, books: tuple[Codebook, Codebook], shape: tuple[int, int, int]) -> None:
    """Alone, in a batch, with drafts after it, by one thread and by three."""
    groups, share, width = shape
    case = {"seed": 3, "batch": 3, "groups": groups, "share": share, "tokens": 600, "full": 30, "width": width, "books": books}
    case |= {"length": 5, "dtype": mx.bfloat16, "mean": True, "outliers": False, "see": "starts", "slack": 0}
    (q, keys, vectors, k, v, *rest), more = made(case)
    forms: Any = rest
    with threads(3):
        whole = packed.attend(q, keys, vectors, k, v, *forms, **more)
        mx.eval(whole)
    with threads(1):
        for b in range(3):
            row = slice(b, b + 1)
            mine: list[Any] = [Packed(*(y[row] for y in x)) for x in (keys, vectors)]
            alone = {**more, "starts": more["starts"][row]}
            for length in (1, 5):
                seen = k.shape[2] - 5 + length
                given = (q[row, :, :length], *mine, k[row, :, :seen], v[row, :, :seen], *forms)
                found = packed.attend(*given, **alone)
                assert mx.array_equal(found, whole[row, :, :length])


@needs_native
def test_what_is_not_finite_does_not_vanish(level: str) -> None:
    case = {"seed": 3, "batch": 1, "groups": 2, "share": 2, "tokens": 300, "full": 3, "width": 64, "books": (lloyd(3), lloyd(3))}
    case |= {"length": 1, "dtype": mx.float32, "mean": False, "outliers": False, "see": "all", "slack": 0}
    (q, keys, vectors, *rest), more = made(case)
    for bad in (np.nan, np.inf):
        poisoned = np.array(q)
        poisoned[0, 1, 0, 5] = bad
        found = wide(packed.attend(mx.array(poisoned), keys, vectors, *rest, **more))
        assert np.isnan(found[0, 1]).all() and np.isfinite(found[0, [0, 2, 3]]).all()
        scales = wide(vectors.scales)
        scales[0, 1, 7] = bad
        broken = Packed(vectors.codes, mx.array(scales.astype(np.float32)).astype(mx.bfloat16))
        found = wide(packed.attend(q, keys, broken, *rest, **more))
        assert not np.isfinite(found[0, 2:]).any() and np.isfinite(found[0, :2]).all()


@needs_native
def test_what_does_not_fit_is_refused() -> None:
    kind = form(lloyd(3), 2, 64)
    stored = packed.pack(mx.zeros((1, 2, 9, 64)), kind)
    with pytest.raises(ValueError, match="the vectors do not fit the buffer"):
        packed.store(stored, 8, mx.zeros((1, 2, 2, 64)), kind)
    with pytest.raises(ValueError, match=r"expected a diagonal \[G, D\]"):
        packed.pack(mx.zeros((1, 3, 2, 64)), kind)
    k = mx.zeros((1, 2, 1, 64))
    with pytest.raises(ValueError, match="codes do not fit the width"):
        packed.attend(mx.zeros((1, 2, 1, 64)), stored, stored, k, k, form(lloyd(4), 2, 64), kind, scale=1.0)


def test_bits_are_a_little_endian_stream() -> None:
    index = mx.array(np.arange(16).reshape(2, 8) % 8).astype(mx.uint8)
    assert packed.pack_bits(index, 3).tolist() == [[0x88, 0xC6, 0xFA]] * 2
    assert packed.packed_bytes(128, 3) == 50 and packed.packed_bytes(128, 4) == 66
    for bits in (1, 2, 3, 4, 5, 6, 8):
        index = mx.array(np.random.default_rng(bits).integers(0, 2**bits, (3, 5, 80))).astype(mx.uint8)
        assert mx.array_equal(packed.unpack_bits(packed.pack_bits(index, bits), bits), index)


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: f"{book.bits}-{book.levels[-1]}")
def test_exact_scales_keep_a_vector_and_searched_codes_are_nearer(book: Codebook) -> None:
    x = mx.array(values(3, 1, 2, 200, 128, outliers=True))
    wide, error = np.array(x, np.float64), {}
    for scaling in ("fit", "exact", "search"):
        kind = form(book, 2, 128, scaling=scaling)
        y = np.array(packed.unpack_reference(packed.pack_reference(x, kind), kind), np.float64)
        turned = [a * np.array(kind.diagonal)[:, None] for a in (wide, y)]
        if scaling != "fit":
            np.testing.assert_allclose((turned[0] * turned[1]).sum(-1), (turned[0] ** 2).sum(-1), rtol=5e-3)
        cosine = (turned[0] * turned[1]).sum(-1) / np.maximum(
            np.linalg.norm(turned[0], axis=-1) * np.linalg.norm(turned[1], axis=-1), 1e-9
        )
        error[scaling] = 1 - cosine[:, :, :-1] ** 2
    assert (error["search"] <= error["exact"] + 1e-6).all()
    if book.bits > 1:
        assert error["search"].mean() < error["exact"].mean() == pytest.approx(error["fit"].mean(), rel=1e-3)

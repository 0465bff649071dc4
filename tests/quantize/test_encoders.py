"""Encoders: rtn is MLX's, search no worse than it, error feedback better than search, refit never a step back for any row."""

from __future__ import annotations

from importlib import import_module

import mlx.core as mx
import numpy as np
import pytest

from optiq.errors import InputError
from optiq.kernels.affine import BITS, GROUP_SIZES, Coded, rounded
from optiq.quantize.encoders import ENCODERS
from optiq.quantize.encoders.gptq import damped, gptq, inverse_factor
from optiq.quantize.encoders.refit import refit
from optiq.quantize.encoders.rtn import rtn
from optiq.quantize.encoders.search import search

HALF = mx.bfloat16


@pytest.fixture(scope="module")
def weight() -> mx.array:
    """Rows [24, 128] with a few outliers and of different scales, as bfloat16 checkpoints hold them."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((24, 128)) * rng.uniform(0.01, 0.2, (24, 1))
    w[rng.uniform(size=w.shape) < 0.01] *= 6
    return rounded(mx.array(w.astype(np.float32)), HALF)


@pytest.fixture(scope="module")
def gram() -> mx.array:
    """Second moment of correlated inputs with channels of very different sizes."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 128)) @ (np.eye(128) + 0.3 * rng.standard_normal((128, 128)))
    x *= np.exp(rng.normal(0, 1, 128))
    return mx.array((x.T @ x / len(x)).astype(np.float32))


def objective(weight: mx.array, coded: Coded, gram: mx.array) -> np.ndarray:
    """d gram d^T per row, in float64."""
    d = np.array(coded.dense() - weight, np.float64)
    return np.einsum("ri,ij,rj->r", d, np.array(gram, np.float64), d)


def assert_stored_form(coded: Coded, shape: tuple[int, ...]) -> None:
    assert coded.codes.shape == shape and coded.codes.dtype == mx.uint32
    assert int(coded.codes.max()) < 2**coded.bits
    for values in (coded.scales, coded.biases):
        assert values.shape == (*shape[:-1], shape[-1] // coded.group_size)
        assert mx.array_equal(rounded(values, HALF), values), "a value that the file cannot hold"


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_rtn_is_mlx_quantize_bit_by_bit(weight: mx.array, bits: int, group_size: int) -> None:
    coded = rtn(weight, bits, group_size, HALF)
    words, scales, biases = mx.quantize(weight.astype(HALF), group_size, bits)
    assert mx.array_equal(coded.words(), words)
    assert mx.array_equal(coded.scales.astype(HALF), scales) and mx.array_equal(coded.biases.astype(HALF), biases)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_search_is_no_worse_than_rtn_in_its_measure_for_any_group(
    weight: mx.array, gram: mx.array, bits: int, group_size: int
) -> None:
    found, plain = search(weight, bits, group_size, HALF, gram), rtn(weight, bits, group_size, HALF)
    assert_stored_form(found, weight.shape)
    h = np.array(mx.diagonal(gram), np.float64)
    h = np.maximum(h, 1e-4 * h.mean())

    def per_group(coded: Coded) -> np.ndarray:
        squares = np.array(coded.dense() - weight, np.float64) ** 2 * h
        return squares.reshape(weight.shape[0], -1, group_size).sum(-1)

    assert (per_group(found) <= per_group(plain) * (1 + 1e-4)).all()
    assert per_group(found).sum() < 0.999 * per_group(plain).sum()


def test_search_without_a_gram_lowers_the_plain_squared_error(weight: mx.array) -> None:
    plain = (rtn(weight, 3, 64, HALF).dense() - weight).square().sum()
    assert float((search(weight, 3, 64, HALF).dense() - weight).square().sum()) < 0.95 * float(plain)


@pytest.mark.parametrize(("bits", "group_size"), [(2, 64), (3, 32), (4, 64), (4, 128), (6, 64), (8, 64)])
def test_each_encoder_is_better_than_the_one_before(weight: mx.array, gram: mx.array, bits: int, group_size: int) -> None:
    arguments = (weight, bits, group_size, HALF, gram)
    coded = [rtn(*arguments), search(*arguments), gptq(*arguments, joint=False), gptq(*arguments)]
    for c in coded:
        assert_stored_form(c, weight.shape)
    totals = [objective(weight, c, damped(gram)).sum() for c in coded]
    assert totals[2] < 0.9 * totals[1] and totals[3] < totals[2] and totals[1] < totals[0], totals


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("start", [rtn, search, gptq])
def test_refit_makes_no_row_worse(weight: mx.array, gram: mx.array, bits: int, start) -> None:  # type: ignore[no-untyped-def]
    form = {"joint": False} if start is gptq else {}
    before = start(weight, bits, 64, HALF, gram, **form)
    after = refit(weight, before, gram, HALF)
    assert_stored_form(after, weight.shape)
    first, second = objective(weight, before, gram), objective(weight, after, gram)
    assert (second <= first * (1 + 1e-4)).all()
    assert second.sum() < first.sum()


def test_blocks_of_columns_change_nothing_but_the_order_of_sums(
    weight: mx.array, gram: mx.array, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gptq(weight, 3, 32, HALF, gram)
    for name in ("gptq", "refit"):
        monkeypatch.setattr(import_module(f"optiq.quantize.encoders.{name}"), "BLOCK_COLUMNS", 32)
    parts = gptq(weight, 3, 32, HALF, gram)
    assert float((whole.codes != parts.codes).mean()) < 0.01
    np.testing.assert_allclose(objective(weight, parts, gram).sum(), objective(weight, whole, gram).sum(), rtol=1e-3)


def test_the_inverse_factor_is_one(gram: mx.array) -> None:
    factor = np.array(inverse_factor(damped(gram)), np.float64)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ np.array(damped(gram), np.float64), np.eye(128), atol=2e-3)


def test_error_feedback_survives_inputs_that_are_never_used(weight: mx.array, gram: mx.array) -> None:
    dead = np.array(gram)
    dead[40:60] = dead[:, 40:60] = 0.0
    for matrix in (mx.array(dead), mx.zeros((128, 128)), mx.ones((128, 128))):
        dense = np.array(gptq(weight, 4, 64, HALF, matrix).dense())
        assert np.isfinite(dense).all() and np.abs(dense).max() < 4 * np.abs(np.array(weight)).max()


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_constant_and_zero_groups_are_exact(encoder: str, gram: mx.array) -> None:
    w = mx.concatenate([mx.zeros((2, 64)), mx.full((2, 64), 0.5)], axis=1)
    np.testing.assert_allclose(np.array(ENCODERS[encoder](w, 4, 64, HALF, gram).dense()), np.array(w), atol=1e-6)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_banks_of_experts_are_coded_like_their_rows(encoder: str, weight: mx.array, gram: mx.array) -> None:
    bank = weight.reshape(3, 8, 128)
    together, flat = (ENCODERS[encoder](w, 3, 32, HALF, gram) for w in (bank, weight))
    assert_stored_form(together, bank.shape)
    assert mx.array_equal(together.codes.reshape(24, 128), flat.codes)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_the_same_input_gives_the_same_codes(encoder: str, weight: mx.array, gram: mx.array) -> None:
    first, second = (ENCODERS[encoder](weight, 4, 64, HALF, gram) for _ in range(2))
    assert mx.array_equal(first.codes, second.codes) and mx.array_equal(first.scales, second.scales)


def test_an_unknown_encoder_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="rtn.*search.*gptq|gptq.*rtn.*search"):
        ENCODERS["awq"]

"""Damage tables from moments: the formulas, the pivots, and what error feedback really leaves."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.kernels.affine import Coded
from optiq.measure import damage
from optiq.measure.damage import combined, damages, pivots
from optiq.measure.moments import Moments
from optiq.models.topology import Tensor
from optiq.plan.options import make_options
from optiq.quantize.encoders.gptq import gptq
from optiq.quantize.encoders.rtn import rtn
from optiq.quantize.encoders.search import search

TENSOR = Tensor("layer.proj", "linear", (48, 128), 0)
OPTIONS = make_options(TENSOR.shape, (2, 3, 4, 8, 16), (64,))


@pytest.fixture(scope="module")
def moments() -> list[Moments]:
    """Two uses of one tensor."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(2):
        x = rng.standard_normal((300, 128)) @ (np.eye(128) + 0.2 * rng.standard_normal((128, 128)))
        gram = mx.array((x.T @ x / 300).astype(np.float32))
        found.append(Moments(mx.array(rng.uniform(0.1, 2, 48).astype(np.float32)), gram, mx.ones(())))
    return found


@pytest.fixture(scope="module")
def weight() -> mx.array:
    return mx.array((0.05 * np.random.default_rng(5).standard_normal(TENSOR.shape)).astype(np.float32))


def by_rtn(weight: mx.array, bits: int, group_size: int, gram: mx.array | None) -> Coded:
    return rtn(weight, bits, group_size, mx.bfloat16, gram)


def by_search(weight: mx.array, bits: int, group_size: int, gram: mx.array | None) -> Coded:
    return search(weight, bits, group_size, mx.bfloat16, gram)


def quadratic(weight: mx.array, coded: Coded, moments: list[Moments]) -> float:
    d = np.array(coded.dense() - weight, np.float64)
    return sum(0.5 * float((np.array(m.row) * np.einsum("ri,ij,rj->r", d, np.array(m.gram), d)).sum()) for m in moments)


def test_without_feedback_it_is_the_quadratic_form_over_all_uses(weight: mx.array, moments: list[Moments]) -> None:
    found = damages(TENSOR, weight, moments, OPTIONS, by_rtn, feedback=False)
    for option, value in zip(OPTIONS, found, strict=True):
        if option.bits == 16:
            assert value == 0.0
        else:
            expected = quadratic(weight, by_rtn(weight, option.bits, option.group_size, None), moments)
            assert value == pytest.approx(expected, rel=1e-3)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("bits", [3, 4])
def test_with_feedback_it_is_close_to_what_gptq_leaves(weight: mx.array, moments: list[Moments], bits: int) -> None:
    options = make_options(TENSOR.shape, (bits,), (64,))
    (predicted,) = damages(TENSOR, weight, moments[:1], options, by_search, feedback=True)
    coded = gptq(weight, bits, 64, mx.bfloat16, moments[0].gram, joint=False)
    assert predicted == pytest.approx(quadratic(weight, coded, moments[:1]), rel=0.25)
    (without,) = damages(TENSOR, weight, moments[:1], options, by_search, feedback=False)
    assert predicted < 0.8 * without


def test_pivots_are_conditional_variances(moments: list[Moments]) -> None:
    gram = np.array(moments[0].gram, np.float64)
    gram += 0.01 * np.diagonal(gram).mean() * np.eye(128)
    expected = [1 / np.linalg.inv(gram[j:, j:])[0, 0] for j in range(128)]
    np.testing.assert_allclose(np.array(pivots(moments[0].gram)), expected, rtol=1e-4)


def test_pivots_of_nothing_are_nothing_and_not_an_error() -> None:
    assert np.isfinite(np.array(pivots(mx.zeros((8, 8))))).all()


def test_one_gram_for_several_uses(moments: list[Moments]) -> None:
    expected = sum(float(m.row.mean()) * np.array(m.gram) for m in moments)
    np.testing.assert_allclose(np.array(combined(moments)), expected, rtol=1e-4, atol=1e-4)


def test_a_sample_of_rows_stands_for_all(weight: mx.array, moments: list[Moments], monkeypatch: pytest.MonkeyPatch) -> None:
    tall = Tensor("tall", "linear", (480, 128), 0)
    rows = mx.concatenate([weight * (1 + 0.05 * i) for i in range(10)])
    uses = [Moments(mx.tile(moments[0].row, 10), moments[0].gram, mx.ones(()))]
    exact = damages(tall, rows, uses, OPTIONS, by_rtn, feedback=False)
    monkeypatch.setattr(damage, "SAMPLED_WEIGHTS", 1)
    chosen = damage.sampled_rows(tall.shape)
    assert len(chosen) == 128 and chosen[0] == 0 and chosen[-1] == 479
    for value, expected in zip(damages(tall, rows, uses, OPTIONS, by_rtn, feedback=False), exact, strict=True):
        assert value == pytest.approx(expected, rel=0.1)

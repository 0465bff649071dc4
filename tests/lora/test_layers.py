"""The arithmetic of adapters against dense weights, and its independence of the batch."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tuner.dora import DoRALinear

from optiq.lora.layers import Bank, Part, products
from optiq.models.adapted import changing, dense_weight, plain_class, touched

OUTPUTS, INPUTS = 96, 64


def layer(bits: int | None, bias: bool, seed: int = 0) -> nn.Module:
    mx.random.seed(seed)
    plain = nn.Linear(INPUTS, OUTPUTS, bias=bias)
    return plain if bits is None else nn.QuantizedLinear.from_linear(plain, 32, bits)


def part(rank: int, seed: int, magnitude: bool = False, scale: float = 1.5) -> Part:
    rng = np.random.default_rng(seed)
    a, b, m = rng.standard_normal((rank, INPUTS)) / 8, rng.standard_normal((OUTPUTS, rank)) / 4, 0.5 + rng.random(OUTPUTS)
    return Part(mx.array(a, mx.float32), mx.array(b, mx.float32), scale, mx.array(m, mx.float32) if magnitude else None)


def dense(base: nn.Module, one: Part | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a layer with an adapter, in float64."""
    w = np.array(dense_weight(base), dtype=np.float64)
    bias = np.array(base.bias, dtype=np.float64) if "bias" in base else np.zeros(OUTPUTS)
    if one is not None:
        w = w + one.scale * np.array(one.b, dtype=np.float64) @ np.array(one.a, dtype=np.float64)
        if one.magnitude is not None:
            w *= (np.array(one.magnitude) / np.linalg.norm(w, axis=1))[:, None]
    return w, bias


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("length", [1, 5, 40])
def test_each_row_has_its_own_weight(bits: int | None, bias: bool, length: int) -> None:
    base = layer(bits, bias)
    bank, parts = Bank(base), {"one": part(2, 1), "two": part(8, 2, magnitude=True), "three": part(4, 3, scale=0.25)}
    for name, one in parts.items():
        bank.add(name, one)
    names = ["two", None, "one", "three", "two", "absent"]
    x = mx.array(np.random.default_rng(4).standard_normal((len(names), length, INPUTS)), mx.float32)
    bare, change = np.array(base(x)), bank.delta(names)
    assert change is not None and list(change.rows) == [0, 2, 3, 4]
    with changing([(base, change)]):
        found = np.array(base(x))
    for row, name in enumerate(names):
        w, c = dense(base, parts.get(str(name)))
        if name in parts:
            np.testing.assert_allclose(found[row], np.array(x[row], dtype=np.float64) @ w.T + c, atol=2e-5)
            assert not np.allclose(found[row], bare[row], atol=0.1)
        else:
            np.testing.assert_array_equal(found[row], bare[row])


def test_dora_is_that_of_mlx_lm() -> None:
    base, one = layer(4, True), part(4, 5, magnitude=True)
    theirs = DoRALinear.from_base(base, r=4, scale=one.scale)
    theirs.lora_a, theirs.lora_b, theirs.m = one.a.T, one.b.T, one.magnitude
    bank = Bank(base)
    bank.add("one", one)
    x = mx.random.normal((1, 3, INPUTS))
    change = bank.delta(["one"])
    assert change is not None
    wanted = np.array(theirs(x))
    with changing([(base, change)]):
        np.testing.assert_allclose(np.array(base(x)), wanted, atol=2e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 7, 16, 17, 64])
def test_a_row_has_the_same_bits_in_every_batch(length: int) -> None:
    """Alone, among others, and beside adapters of a higher rank."""
    rng = np.random.default_rng(length)
    x = mx.array(rng.standard_normal((11, length, 256)), mx.float32)
    w = mx.array(rng.standard_normal((3, 80, 256)), mx.float32)
    slots = rng.integers(0, 3, 11).tolist()
    whole = np.array(products(x, w, slots))
    for row, slot in enumerate(slots):
        np.testing.assert_array_equal(np.array(products(x[row : row + 1], w[slot : slot + 1], [0]))[0], whole[row])
    np.testing.assert_array_equal(np.array(products(x, mx.pad(w, ((0, 0), (0, 48), (0, 0))), slots))[..., :80], whole)
    np.testing.assert_array_equal(
        np.array(products(mx.pad(x, ((0, 0), (0, 0), (0, 64))), mx.pad(w, ((0, 0), (0, 0), (0, 64))), slots)), whole
    )


def test_adapters_come_and_go() -> None:
    base = layer(None, False)
    bank = Bank(base)
    alone = Bank(base)
    alone.add("two", part(4, 2))
    x = mx.random.normal((1, 2, INPUTS))

    def run(of: Bank) -> np.ndarray:
        change = of.delta(["two"])
        assert change is not None
        with changing([(base, change)]):
            return np.array(base(x))

    for seed, name in enumerate(("one", "two", "three"), 1):
        bank.add(name, part(4 * seed if name != "two" else 4, seed))
    np.testing.assert_array_equal(run(bank), run(alone))
    held = bank.nbytes
    bank.remove("one")
    np.testing.assert_array_equal(run(bank), run(alone))
    bank.remove("three")
    assert bank.names == ["two"] and bank.delta(["one", None]) is None
    assert bank.nbytes < held / 2
    np.testing.assert_array_equal(run(bank), run(alone))


def test_the_layer_is_what_it_was() -> None:
    base = layer(4, True)
    kind, bank = type(base), Bank(base)
    bank.add("one", part(2, 1))
    change = bank.delta([None, "one"])
    assert change is not None
    with pytest.raises(ValueError, match=r"adapters for 2 rows met an input of shape \(3, 1, 64\)"), changing([(base, change)]):
        assert type(base) is not kind and isinstance(base, kind) and plain_class(base) is kind and touched([base]) == [1]
        base(mx.zeros((3, 1, INPUTS)))
    assert type(base) is kind and "_change" not in base.__dict__ and touched([base]) == []

"""A row of a batch against the row alone, in bfloat16: the tolerance is zero up to 16 tokens in a step, with native kernels."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from engine_requests import KINDS, ids
from optiq.kernels import native
from optiq.kernels.fused import FEW_ROWS
from optiq.lora.mounted import Mounted
from optiq.models import layers
from optiq.models.forward import Halves
from optiq.models.load import load
from optiq.serve.rows import Batch

MODEL = Path(__file__).parents[2] / "examples" / "tiny-qwen3.5"


@pytest.fixture(scope="module", params=["dense", "4 bit"])
def halves(request):
    model, _ = load(MODEL)
    if request.param == "4 bit":
        nn.quantize(model, 64, 4, class_predicate=lambda _, layer: hasattr(layer, "to_quantized"))
        layers.use_kernels(model)
    return Halves(model)


def batch(halves, rows):
    """Rows that have read prompts of different lengths, each over its own kind of caches."""
    made = Batch(halves, Mounted(halves.model))
    for n in rows:
        caches = KINDS[n % len(KINDS)].read()(halves.model)
        halves.body(mx.array([ids(n, 7 + 37 * n)]), caches)
        made.add(str(n), caches)
    return made


@pytest.mark.skipif(native.module() is None, reason="the native kernels were not built here")
@pytest.mark.parametrize(("rows", "length"), [(2, 1), (5, 3), (8, 2), (16, 1)])
def test_logits_have_the_bits_of_the_row_alone(halves, rows, length):
    together = batch(halves, range(rows))
    for step in range(3):
        tokens = mx.array([ids(100 * step + n, length) for n in range(rows)])
        assert tokens.size <= FEW_ROWS and length <= min(together.lookahead())
        logits = _read(together, tokens, length)
        for n in {*range(min(rows, len(KINDS))), rows - 1}:
            alone = batch(halves, [n])
            for before in range(step):
                _read(alone, mx.array([ids(100 * before + n, length)]), length)
            for place in range(length):
                expected = alone.forward(tokens[n : n + 1, place : place + 1])[1]
                assert expected.dtype == mx.bfloat16 and mx.array_equal(logits[n, place], expected[0, 0]), (n, place)


def _read(made, tokens, length):
    """The logits of a step whose tokens are all kept."""
    with made.looking(length) as step:
        _, logits = made.forward(tokens)
        made.keep(step, tokens, [length] * tokens.shape[0])
    return logits

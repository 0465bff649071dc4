"""The memory of a training step: what bounds it, and that the bound is given back."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from optiq.lora import batches, memory, targets
from optiq.lora import learner as learning
from optiq.lora.data import Sample
from optiq.lora.learner import Learner, fresh
from tiny_model import tiny


def test_the_bound_is_given_back() -> None:
    before = mx.set_memory_limit(1 << 40)
    with pytest.raises(RuntimeError, match="in between"), memory.bounded(12345):
        assert mx.set_memory_limit(12345) == 12345
        raise RuntimeError("in between")
    assert mx.set_memory_limit(before) == 1 << 40


def test_logits_of_one_chunk_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(4, mx.float32)
    found = targets.find(model, ("q_proj",))
    of = Learner(model, found, dict.fromkeys(found, 1.0))
    parameters = fresh(found, dict.fromkeys(found, 2), 0)
    ids = tuple(np.random.default_rng(0).integers(1, 4000, 1025).tolist())
    batch = batches.collate([Sample("", ids, (False, *[True] * 1024))], packing=True)
    hidden = of.hidden(parameters, batch)
    mx.eval(hidden)

    def peak(chunk: int) -> int:
        monkeypatch.setattr(learning, "CHUNK", chunk)
        mx.reset_peak_memory()
        with memory.bounded(0):
            mx.eval(mx.grad(lambda hidden: of.losses(parameters, hidden, batch).sum())(hidden))
        return int(mx.get_peak_memory()) - int(mx.get_active_memory())

    logits = 1024 * 4096 * 4
    whole = peak(1024)
    assert whole > logits and peak(64) < whole / 5

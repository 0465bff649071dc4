"""Perplexity against the loaded model's own logits; a model is at no distance from itself."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from optiq.evals import fidelity
from optiq.kernels import loss
from optiq.measure.divergence import divergence
from optiq.measure.tokens import Tokens
from optiq.models.load import load_modules


def test_losses_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    whole = fidelity.score_text(tiny_model, 64, 1)
    ids = whole.ids[:2]
    found, again = divergence(tiny_model, tiny_model, Tokens(ids, whole.domains[:2], whole.documents[:2], "x", "score")).losses
    model, _ = load_modules(tiny_model)
    model.set_dtype(mx.float32)
    theirs = np.array(loss.cross_entropy_reference(model(mx.array(ids))[:, :-1], mx.array(ids[:, 1:])))
    assert found.shape == (2, 63) and np.array_equal(found, again) and np.allclose(found, theirs, atol=2e-2)
    assert fidelity.perplexity(np.log([[2.0, 8.0]])) == pytest.approx(4.0)

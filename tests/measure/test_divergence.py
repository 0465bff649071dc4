"""True divergence: nothing from a model to itself, numpy's figures between two, sane intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import log_softmax

import random_models
from optiq.errors import InputError
from optiq.measure import walk
from optiq.measure.divergence import divergence, kl
from optiq.measure.tokens import Tokens
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream

IDS = np.random.default_rng(3).integers(0, 128, (6, 20)).astype(np.int32)
TOKENS = Tokens(IDS, ("a", "b") * 3, tuple(map(str, range(6))), "0" * 64, "score")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(random_models.write(tmp_path_factory.mktemp("model") / "m", "qwen3_5-tied"))


@pytest.fixture(scope="module")
def other(checkpoint: Checkpoint) -> Checkpoint:
    """The same with each matrix rounded to four bits."""

    def coarse(name: str, value: mx.array) -> mx.array:
        if value.ndim != 2 or value.shape[-1] % 32:
            return value
        return mx.dequantize(*mx.quantize(value, 32, 4), 32, 4)

    return replace(checkpoint, transform=coarse)


def test_a_model_does_not_diverge_from_itself(checkpoint: Checkpoint) -> None:
    found = divergence(checkpoint, checkpoint.path, TOKENS)
    assert found.kl.shape == IDS.shape and np.abs(found.kl).max() < 1e-6 and found.same.all()
    assert found.summary()["top1"] == 1.0


def test_it_is_numpys_kl_of_the_whole_models(checkpoint: Checkpoint, other: Checkpoint) -> None:
    found = divergence(checkpoint, other, TOKENS)
    p, q = (
        log_softmax(np.array(Stream(c, whole=True).tail(mx.zeros((1, 1, 1)), mx.array(IDS)), np.float64), axis=-1)
        for c in (checkpoint, other)
    )
    expected = (np.exp(p) * (p - q)).sum(-1)
    np.testing.assert_allclose(found.kl, expected, rtol=2e-2, atol=1e-5)
    assert (found.same == (p.argmax(-1) == q.argmax(-1))).mean() > 0.98
    assert np.array_equal(found.tops[0], p.argmax(-1))
    for logprob, losses in zip((p, q), found.losses, strict=True):
        np.testing.assert_allclose(
            losses, -np.take_along_axis(logprob[:, :-1], IDS[:, 1:, None], -1)[..., 0], rtol=1e-2, atol=1e-3
        )
    summary = found.summary()
    assert summary["mean"] == found.mean == pytest.approx(expected.mean(), rel=1e-2)
    assert summary["documents"] == 6 and summary["tokens"] == 120
    assert summary["median"] <= summary["p95"] <= summary["p99"]  # type: ignore[operator]
    domains = summary["by_domain"]
    assert isinstance(domains, dict) and list(domains) == ["a", "b"]
    assert np.mean(list(domains.values())) == pytest.approx(found.mean)
    low, high = summary["ci95"]  # type: ignore[misc]
    assert low < found.mean < high


def test_slices_of_the_logits_change_nothing(checkpoint: Checkpoint, other: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = divergence(checkpoint, other, TOKENS).kl
    monkeypatch.setattr(walk, "LOGIT_FLOATS", 128 * 7)
    pieces = list(walk.slices(Stream(checkpoint), IDS, 128))
    assert len(pieces) == 18 and pieces[2] == (0, 1, 14, 20)
    np.testing.assert_allclose(divergence(checkpoint, other, TOKENS).kl, expected, atol=1e-6)


def test_the_references_hidden_states_are_kept_for_the_next_candidate(
    checkpoint: Checkpoint, other: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = divergence(checkpoint, other, TOKENS, work=tmp_path)
    reference, walked = Stream(checkpoint), []
    run = walk.forward_block
    monkeypatch.setattr(walk, "forward_block", lambda stream, *rest: (walked.append(stream), run(stream, *rest)))
    again = divergence(reference, other, TOKENS, work=tmp_path)
    assert reference not in walked and walked
    assert np.array_equal(first.kl, again.kl)


def test_kl_of_large_logits_is_finite() -> None:
    value, same = kl(mx.array([[[300.0, -300.0, 0.0]]]), mx.array([[[-300.0, 300.0, 0.0]]]))
    assert float(value[0, 0]) == pytest.approx(600.0) and not bool(same[0, 0])


def test_models_of_other_vocabularies_are_refused(checkpoint: Checkpoint, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"the vocabulary of .* has \d+ tokens and that of .* 128; a divergence is between"):
        divergence(checkpoint, tiny_model, TOKENS)

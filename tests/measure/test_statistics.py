"""The gradient pass: predictions against measured divergence, cut and uncut models, unseen entries, and interruptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import quick
import random_models
from optiq.measure import walk
from optiq.measure.divergence import kl
from optiq.measure.hidden import HiddenStore
from optiq.measure.statistics import Statistics, gather
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream

IDS = np.random.default_rng(0).integers(0, 128, (32, 32)).astype(np.int32)
WHOLE = mx.zeros((1, 1, 1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Llama of one block: between its errors and the logits stands no second attention that adds them up over tokens."""
    return Checkpoint.open(random_models.write(tmp_path_factory.mktemp("model") / "llama", "llama", num_hidden_layers=1))


@pytest.fixture(scope="module")
def statistics(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return gather(Stream(checkpoint), IDS, tmp_path_factory.mktemp("statistics"))


def test_predicted_damage_is_the_measured_divergence(checkpoint: Checkpoint, statistics: Statistics) -> None:
    """One half row d gram d^T for a small random error in each tensor, against the true KL on the same tokens."""
    stream = Stream(checkpoint, whole=True)
    ids, weights = mx.array(IDS), checkpoint.weights()
    reference = stream.tail(WHOLE, ids)
    predicted, measured = {}, {}
    for tensor in stream.topology.tensors:
        name = f"{tensor.name}.weight"
        mx.random.seed(71)  # not the seed that drew the weights
        error = mx.random.normal(tensor.shape) * 0.03 * mx.sqrt(weights[name].square().mean())
        predicted[tensor.name] = sum(
            0.5 * float((m.row * ((error @ m.gram) * error).sum(-1)).sum()) for m in statistics.uses(tensor)
        )

        def changed(path: str, value: mx.array, name: str = name, error: mx.array = error) -> mx.array:
            return value + error if path == name else value

        logits = Stream(replace(checkpoint, transform=changed), whole=True).tail(WHOLE, ids)
        measured[tensor.name] = float(kl(reference, logits)[0].mean())
    for name, value in predicted.items():
        assert value == pytest.approx(measured[name], rel=0.3), name
    assert sum(predicted.values()) == pytest.approx(sum(measured.values()), rel=0.1)


def test_the_heads_rows_are_the_exact_fisher_information(checkpoint: Checkpoint, statistics: Statistics) -> None:
    stream = Stream(checkpoint, whole=True)
    p = mx.softmax(stream.tail(WHOLE, mx.array(IDS)), axis=-1)
    head = next(tensor for tensor in stream.topology.tensors if tensor.kind == "head")
    (moments,) = statistics.uses(head)
    quick.assert_close(moments.row, (p * (1 - p)).mean((0, 1)), 1e-3)


def test_moments_are_symmetric_positive_and_tokens_are_all_weighted(checkpoint: Checkpoint, statistics: Statistics) -> None:
    for tensor in Stream(checkpoint).topology.tensors:
        for moments in statistics.uses(tensor):
            gram, row = np.array(moments.gram, np.float64), np.array(moments.row)
            assert row.shape == tensor.shape[:-1] and (row > 0).all(), tensor.name
            np.testing.assert_allclose(gram, gram.T, atol=1e-5 * np.abs(gram).max())
            assert np.linalg.eigvalsh(gram).min() > -1e-5 * np.abs(gram).max()
        weights = statistics.token_weights(tensor)
        if tensor.kind == "embedding":
            assert weights is None
        else:
            assert weights is not None and weights.shape == (IDS.size,) and (weights >= 0).all() and weights.sum() > 0


def test_entries_that_the_text_never_reads_get_the_unseen_share(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Good-Turing: entries read once over all reads is the chance of an unseen one; it is shared by those that were not read."""
    ids = np.array([[5, 5, 6, 6, 7, 8, 9, 9]], np.int32)
    stream = Stream(checkpoint)
    found = gather(stream, ids, tmp_path)
    row = np.array(found.uses(stream.topology.tensors[0])[0].row)
    assert stream.topology.tensors[0].kind == "embedding"
    once, unread = 2, 128 - 5
    np.testing.assert_allclose(row[[0, 1, 100]], once / 8 / unread, rtol=1e-5)
    np.testing.assert_allclose(row[[5, 6, 7, 8, 9]], np.array([2, 2, 1, 1, 2]) / 8 * (1 - once / 8), rtol=1e-5)
    assert row.sum() == pytest.approx(1.0, rel=1e-5)


def test_experts_that_the_text_never_reaches_still_count(tmp_path: Path) -> None:
    source = Checkpoint.open(random_models.write(tmp_path / "model", "qwen3_5-moe"))
    stream = Stream(source)
    found = gather(stream, IDS[:1, :2], tmp_path / "statistics")
    banks = [tensor for tensor in stream.topology.tensors if tensor.kind == "experts"]
    assert banks
    for tensor in banks:
        row = np.array(found.uses(tensor)[0].row)
        assert row.shape == tensor.shape[:2] and (row > 0).all()


@pytest.mark.parametrize("name", ["qwen3_5-untied", "deepseek_v3"])
def test_a_model_in_blocks_and_in_one_piece_give_the_same_statistics(tmp_path: Path, name: str) -> None:
    source = Checkpoint.open(random_models.write(tmp_path / "model", name))
    cut, whole = Stream(source), Stream(source, whole=True)
    assert cut.depth > 1 and whole.depth == 0
    ids = IDS[:4]
    in_blocks, in_one = gather(cut, ids, tmp_path / "cut"), gather(whole, ids, tmp_path / "whole")
    for tensor in cut.topology.tensors:
        both = zip(in_blocks.uses(tensor), in_one.uses(tensor), strict=True)
        for first, second in both:
            quick.assert_close(first.gram, second.gram, 2e-3)
            if tensor.kind != "head":  # exact in blocks, sampled in one piece
                quick.assert_close(first.row, second.row, 2e-3)


def test_a_tied_embedding_has_both_uses(tmp_path: Path) -> None:
    stream = Stream(Checkpoint.open(random_models.write(tmp_path / "model", "qwen3_5-tied")))
    found = gather(stream, IDS[:2], tmp_path / "statistics")
    embedding = next(tensor for tensor in stream.topology.tensors if tensor.kind == "embedding")
    lookup_or_product = found.uses(embedding)
    assert stream.topology.tied and len(lookup_or_product) == 2
    assert sum(float(m.row.sum()) == pytest.approx(1.0, rel=1e-4) for m in lookup_or_product) >= 1
    assert found.token_weights(embedding) is not None


class _Killed(Exception):
    pass


@pytest.mark.parametrize("after", [3, 10, 22])
def test_an_interrupted_pass_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    source = Checkpoint.open(random_models.write(tmp_path / "model", "llama"))
    gather(Stream(source), IDS[:4], tmp_path / "whole")
    hand_over, count, blocks = walk._hand_over, 0, []

    def dies(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise _Killed
        hand_over(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(walk, "_hand_over", dies)
    with pytest.raises(_Killed):
        gather(Stream(source), IDS[:4], tmp_path / "twice")
    monkeypatch.undo()
    block_backward = walk._block_backward
    monkeypatch.setattr(walk, "_block_backward", lambda stream, i, *rest: (blocks.append(i), block_backward(stream, i, *rest)))
    gather(Stream(source), IDS[:4], tmp_path / "twice")
    assert len(blocks) == {3: 3, 10: 2, 22: 0}[after], "finished blocks were computed again"
    assert quick.digests(tmp_path / "twice") == quick.digests(tmp_path / "whole")


def test_a_finished_pass_is_not_run_again(
    checkpoint: Checkpoint, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "forward", lambda *_: pytest.fail("ran again"))
    assert gather(Stream(checkpoint), IDS, statistics.path) == statistics
    assert not (statistics.path / "hidden").exists()


def test_batches_do_not_change_the_hidden_states(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(checkpoint)
    stores = [HiddenStore(tmp_path / name) for name in ("large", "small")]
    walk.forward(stream, IDS[:5], stores[0])
    monkeypatch.setattr(walk, "BATCH_FLOATS", 32 * 256 * 2)
    walk.forward(stream, IDS[:5], stores[1])
    assert list(walk.batches(IDS[:5], 64)) == [(0, 2), (2, 4), (4, 5)]
    for level in ("0", "1"):
        quick.assert_close(stores[1].rows(level, 0, 5), stores[0].rows(level, 0, 5), 1e-6)


def test_large_stores_keep_half_the_bytes(tmp_path: Path) -> None:
    store = HiddenStore(tmp_path / "half", total_bytes=5_000_000_000)
    hidden = mx.random.normal((3, 4, 8))
    store.put("0", [store.pack(hidden[:2]), store.pack(hidden[2:])])
    assert store.bytes == 2_500_000_000 and store.width("0") == 8
    assert np.load(tmp_path / "half" / "0.npy").dtype == np.uint16
    assert mx.array_equal(store.rows("0", 1, 3), hidden[1:].astype(mx.bfloat16).astype(mx.float32))
    store.drop("0")
    assert not store.has("0")

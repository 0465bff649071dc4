"""Topology and the walk block by block: every architecture's parts, and the same logits as the model in one piece."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import quick
import random_models
from optiq.models.checkpoint import Checkpoint
from optiq.models.stream import Stream
from optiq.models.topology import topology

IDS = mx.array(np.random.default_rng(2).integers(0, 128, (3, 11)).astype(np.int32))
KINDS = {  # kinds that are not `linear`, how many, and whether the head is tied
    "qwen3_5-tied": ({"embedding": 1}, True, 4),
    "qwen3_5-untied": ({"embedding": 1, "head": 1}, False, 4),
    "qwen3_5-moe": ({"embedding": 1, "head": 1, "experts": 12}, False, 4),
    "llama": ({"embedding": 1, "head": 1}, False, 3),
    "gemma3": ({"embedding": 1, "head": 1}, False, 3),
    "gemma3-tied": ({"embedding": 1}, True, 3),
    "phi3": ({"embedding": 1, "head": 1}, False, 3),
    "deepseek_v3": ({"embedding": 1, "head": 1, "experts": 6, "heads": 6}, False, 3),
}


@pytest.fixture(scope="module", params=list(random_models.CONFIGS))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Checkpoint]:
    path = random_models.write(tmp_path_factory.mktemp(request.param) / "model", request.param)
    return request.param, Checkpoint.open(path)


def by_blocks(stream: Stream, ids: mx.array) -> mx.array:
    hidden = stream.front(ids)
    for i in range(stream.depth):
        stream.load_block(i)
        hidden = stream.block(i, hidden)
        mx.eval(hidden)
        stream.release_block(i)
    return stream.tail(hidden, ids)


def test_every_architecture_is_covered() -> None:
    assert set(KINDS) == set(random_models.CONFIGS)


def test_parts(named: tuple[str, Checkpoint]) -> None:
    name, checkpoint = named
    kinds, tied, depth = KINDS[name]
    parts = topology(checkpoint)
    counted = Counter(tensor.kind for tensor in parts.tensors)
    assert {kind: n for kind, n in counted.items() if kind != "linear"} == kinds
    assert parts.tied == tied and len(parts.blocks) == depth
    weights = checkpoint.weights()
    for tensor in parts.tensors:
        assert tuple(weights[f"{tensor.name}.weight"].shape) == tensor.shape
        assert len(tensor.shape) == (3 if tensor.kind in ("experts", "heads") else 2)
        inside = next((i for i, path in enumerate(parts.blocks) if tensor.name.startswith(path + ".")), None)
        assert tensor.block == inside and (inside is None) == (tensor.kind in ("embedding", "head"))
    routers = [tensor for tensor in parts.tensors if tensor.least_bits]
    assert bool(routers) == (name == "qwen3_5-moe") and all(tensor.least_bits == 8 for tensor in routers)
    assert [t.name for i in (None, *range(depth)) for t in parts.of_block(i)] != []


def test_block_by_block_is_the_model_in_one_piece_and_stock_mlx_lm(named: tuple[str, Checkpoint]) -> None:
    _, checkpoint = named
    cut, whole = Stream(checkpoint), Stream(checkpoint, whole=True)
    assert cut.depth == len(topology(checkpoint).blocks) and whole.depth == 0
    expected = whole.tail(mx.zeros((1, 1, 1)), IDS)
    assert expected.dtype == mx.float32 and expected.shape == (3, 11, 128)
    quick.assert_close(by_blocks(cut, IDS), expected, 1e-5)
    quick.assert_close(by_blocks(cut, IDS[:1, :4]), expected[:1, :4], 1e-4)  # another shape: fresh masks; and again after release
    quick.assert_close(quick.logits(checkpoint.path), quick.stock_logits(checkpoint.path), 1e-3)


def test_one_blocks_weights_are_in_memory_at_a_time(tmp_path: Path) -> None:
    stream = Stream(Checkpoint.open(random_models.write(tmp_path / "model", "llama")))
    names = stream.load_block(1)
    assert names and all(name.startswith("model.layers.1.") for name in names)
    tensor = stream.topology.of_block(1)[0]
    assert stream.weight(tensor).shape == tensor.shape
    stream.release_block(1)
    assert stream.weight(tensor).size == 0


def test_wrapping_sees_every_tensor_and_is_undone(named: tuple[str, Checkpoint]) -> None:
    _, checkpoint = named
    stream = Stream(checkpoint)
    for i in range(stream.depth):
        stream.load_block(i)

    def run() -> mx.array:
        hidden = stream.front(IDS)
        for i in range(stream.depth):
            hidden = stream.block(i, hidden)
        return stream.tail(hidden, IDS)

    expected = run()
    seen: set[str] = set()

    class Watch:
        def __init__(self, name: str, module) -> None:  # type: ignore[no-untyped-def]
            self.name, self.module = name, module

        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return getattr(self.module, name)

        def __getitem__(self, name: str):  # type: ignore[no-untyped-def]
            return self.module[name]

        def __contains__(self, name: str) -> bool:
            return name in self.module

        def __call__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            seen.add(self.name)
            return self.module(*args, **kwargs)

    undo = stream.wrap(list(stream.topology.tensors), lambda tensor, module: Watch(tensor.name, module))
    quick.assert_close(run(), expected, 0.0)
    assert seen == {tensor.name for tensor in stream.topology.tensors}
    seen.clear()
    undo()
    quick.assert_close(run(), expected, 0.0)
    assert not seen


def test_given_weights_take_the_place_of_stored_ones(tmp_path: Path) -> None:
    stream = Stream(Checkpoint.open(random_models.write(tmp_path / "model", "llama")))
    before = by_blocks(stream, IDS)
    stream.assign_outer({"lm_head.weight": mx.zeros((128, 64))})
    assert float(mx.abs(by_blocks(stream, IDS)).max()) == 0.0
    stream.load_outer()
    quick.assert_close(by_blocks(stream, IDS), before, 0.0)

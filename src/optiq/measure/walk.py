"""Forward and backward passes over a streamed model, block by block, batch by batch.

Forward: the hidden state that enters each block is stored. Backward: from the logits down, each block is recomputed from its
stored input and its vector-Jacobian product taken; one block's weights and one block's moments are in memory at a time. Labels
are drawn from the model's own distribution, with a key per row, so that a pass gives the same numbers however it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from optiq.events import QUIET, Events
from optiq.kernels import loss as losses
from optiq.measure.hidden import HiddenStore
from optiq.measure.moments import Moments, Probe, Sink
from optiq.models.stream import Stream
from optiq.models.topology import Tensor

BATCH_FLOATS = 1 << 21  # hidden floats per batch: 16 rows of 512 x 256, one row of 512 x 4096
LOGIT_FLOATS = 1 << 25  # logits per slice of the tail: 128 MB
SEED = 20_260

Score = Callable[[Tensor, mx.array, list[Moments], mx.array | None], None]


def forward(
    stream: Stream, ids: np.ndarray, store: HiddenStore, events: Events = QUIET, keep: bool = True, label: str = "forward"
) -> None:
    """Store what enters each block and what leaves the last one, under the keys 0, 1, ..., depth.

    Args:
        ids: tokens [N, L].
        keep: keep every block's input; otherwise only the newest (and at the end the last output).
        label: what the progress is called.
    """
    with events.stage(label, stream.depth, "blocks") as stage:
        if not any(store.has(str(i)) for i in range(stream.depth + 1)):
            forward_front(stream, ids, store)
        for i in range(stream.depth):
            if not store.has(str(i + 1)) and store.has(str(i)):
                stream.load_block(i)
                forward_block(stream, i, ids, store)
                stream.release_block(i)
            if not keep and store.has(str(i + 1)):
                store.drop(str(i))
            stage.advance()


def forward_front(stream: Stream, ids: np.ndarray, store: HiddenStore) -> None:
    """Store what enters the first block."""
    store.put("0", [store.pack(_done(stream.front(mx.array(ids[a:b])))) for a, b in batches(ids, 1)])


def forward_block(stream: Stream, index: int, ids: np.ndarray, store: HiddenStore) -> None:
    """Store what leaves a block whose weights are in place."""
    width = store.width(str(index))
    outputs = [store.pack(_done(stream.block(index, store.rows(str(index), a, b)))) for a, b in batches(ids, width)]
    store.put(str(index + 1), outputs)


def backward(stream: Stream, ids: np.ndarray, store: HiddenStore, score: Score, events: Events = QUIET) -> None:
    """Gather moments from the top down and hand each tensor's, with its weight and token weights, to `score`.

    Args:
        ids: the tokens [N, L] whose hidden states `forward` put into the store.
        score: called once per tensor with its weight (float32), the moments of each of its uses and the weights of its
            tokens [N * L] (None for a table lookup).
    """
    outer = stream.topology.of_block(None)
    inner = [t for t in outer if stream.depth == 0 or t.kind != "embedding" or stream.topology.tied]
    depth = stream.depth
    with events.stage("backward", depth + 2, "blocks") as stage:
        level = next((i for i in range(depth + 1) if store.has(f"gradient-{i}")), None)
        if level is None:
            sink = Sink()
            _tail_backward(stream, ids, store, sink, inner)
            level = depth
        else:
            sink = store.load_sink("outer")
        stage.advance(1 + depth - level)
        for i in reversed(range(level)):
            _block_backward(stream, i, ids, store, score)
            stage.advance()
        stream.load_outer()
        if depth:
            _front_backward(stream, ids, store, sink, [t for t in outer if t.kind == "embedding"])
        for tensor in outer:
            _hand_over(tensor, stream.weight(tensor), sink, ids.size, score)
        stream.load_outer()
        stage.advance()


def batches(ids: np.ndarray, width: int, tokens: int = 1) -> Iterator[tuple[int, int]]:
    """Row ranges of one batch each, for hidden states of this width; at least so many tokens each, where there are as many."""
    rows = max(1, BATCH_FLOATS // (ids.shape[1] * max(width, 256)), tokens // ids.shape[1])
    for start in range(0, len(ids), rows):
        yield start, min(start + rows, len(ids))


def slices(stream: Stream, ids: np.ndarray, vocabulary: int) -> Iterator[tuple[int, int, int, int]]:
    """Row and position ranges whose logits fit into `LOGIT_FLOATS`; whole rows for a model in one piece."""
    length = ids.shape[1]
    span = length if stream.depth == 0 else max(1, min(length, LOGIT_FLOATS // vocabulary))
    rows = max(1, min(len(ids), LOGIT_FLOATS // (vocabulary * span)))
    for a in range(0, len(ids), rows):
        for left in range(0, length, span):
            yield a, min(a + rows, len(ids)), left, min(left + span, length)


def vocabulary_size(stream: Stream) -> int:
    """Width of the logits, from the head's (or the tied embedding's) rows."""
    shapes = {t.kind: t.shape for t in stream.topology.tensors}
    shape = shapes.get("head") or shapes.get("embedding")
    return int(shape[0]) if shape else int(stream.tail(mx.zeros((1, 1, 1)), mx.zeros((1, 1), mx.int32)).shape[-1])


def _tail_backward(stream: Stream, ids: np.ndarray, store: HiddenStore, sink: Sink, tensors: list[Tensor]) -> None:
    """Gradient of the summed loss at the last block's output; exact expected squares at the logits."""
    probes: list[Probe] = []
    undo = stream.wrap(tensors, lambda tensor, module: _probe(probes, tensor, module, sink))
    head = next((t for t in tensors if t.kind == "head"), None) or next((t for t in tensors if t.kind == "embedding"), None)
    if head is not None and stream.depth:
        sink.exact_rows.add(head.name)
    gradients: dict[int, list[np.ndarray]] = {}
    pieces = list(slices(stream, ids, vocabulary_size(stream)))
    for a, b, left, right in pieces:
        hidden = store.rows(str(stream.depth), a, b)[:, left:right]
        part = mx.array(ids[a:b, left:right])
        squares: list[mx.array] = []

        def loss(hidden: mx.array, part=part, a=a, b=b, left=left, squares=squares) -> mx.array:  # type: ignore[no-untyped-def]
            for probe in probes:
                probe.offset = hidden if stream.depth == 0 else None
            logits = stream.tail(hidden, part)
            fixed = mx.stop_gradient(logits)
            labels = mx.stack([mx.random.categorical(fixed[r - a], key=_key(r, left)) for r in range(a, b)])
            p = losses.softmax(fixed)
            squares.append((p * (1 - p)).sum((0, 1)))
            return losses.cross_entropy(logits, labels).sum()

        gradient = mx.grad(loss)(hidden)
        if head is not None and head.name in sink.exact_rows:
            moments = sink.moments(head, "product")
            moments.row = moments.row + squares[0]
        mx.eval(gradient, sink.arrays())
        gradients.setdefault(a, []).append(np.array(gradient))
    undo()
    for name, parts in sink.token_weights.items():
        sink.token_weights[name] = [_in_row_order(parts, pieces)]
    store.save_sink("outer", sink)
    store.put(f"gradient-{stream.depth}", [np.concatenate(parts, axis=1) for parts in gradients.values()])


def _block_backward(stream: Stream, index: int, ids: np.ndarray, store: HiddenStore, score: Score) -> None:
    tensors = stream.topology.of_block(index)
    stream.load_block(index)
    weights = {t.name: stream.weight(t) for t in tensors}
    sink = Sink()
    undo = stream.wrap(tensors, lambda tensor, module: Probe(tensor, module, sink))
    gradients = []
    width = store.width(str(index))
    for a, b in batches(ids, 3 * width):
        cotangent = store.rows(f"gradient-{index + 1}", a, b)
        _, (gradient,) = mx.vjp(lambda x: stream.block(index, x), [store.rows(str(index), a, b)], [cotangent])
        mx.eval(gradient, sink.arrays())
        gradients.append(np.array(gradient))
    undo()
    for tensor in tensors:
        _hand_over(tensor, weights[tensor.name], sink, ids.size, score)
    store.put(f"gradient-{index}", gradients)
    store.drop(f"gradient-{index + 1}")
    stream.release_block(index)


def _front_backward(stream: Stream, ids: np.ndarray, store: HiddenStore, sink: Sink, tensors: list[Tensor]) -> None:
    """The embedding's own output gradient, from the gradient at the first block's input."""
    probes: list[Probe] = []
    undo = stream.wrap(tensors, lambda tensor, module: _probe(probes, tensor, module, sink))

    def front(offset: mx.array, part: mx.array) -> mx.array:
        for probe in probes:
            probe.offset = offset
        return stream.front(part)

    for a, b in batches(ids, store.width("0")):
        part = mx.array(ids[a:b])
        mx.vjp(lambda z, part=part: front(z, part), [mx.zeros((*part.shape, 1))], [store.rows("gradient-0", a, b)])
        mx.eval(sink.arrays())
    undo()


def _hand_over(tensor: Tensor, weight: mx.array, sink: Sink, tokens: int, score: Score) -> None:
    """Turn sums into means per token and pass them on."""
    uses = []
    for use, moments in sink.uses.get(tensor.name, {}).items():
        row, gram = moments.row / tokens, moments.gram / mx.maximum(moments.weight, 1e-30)
        uses.append(Moments(_smoothed(use, tensor, row, tokens), gram, moments.weight))
    parts = sink.token_weights.get(tensor.name)
    mx.eval([m.arrays() for m in uses])
    score(tensor, weight, uses, mx.concatenate(parts) if parts else None)


def _smoothed(use: str, tensor: Tensor, row: mx.array, tokens: int) -> mx.array:
    """Rows that the text never reached get the weight that unseen events have, instead of none.

    Lookups: the Good-Turing estimate of the unseen probability (entries read once over all reads) is shared by the entries that
    were not read. Experts: a hundredth of the mean, since a router may send text there that this text does not contain.
    """
    if use == "lookup":
        once = float((mx.abs(row * tokens - 1) < 0.5).sum())
        unread = row == 0
        count = float(unread.sum())
        if count == 0:
            return row
        missing = max(once, 1.0) / tokens
        return mx.where(unread, missing / count, row * (1 - missing))
    return row + 0.01 * row.mean() if tensor.kind == "experts" else row


def _in_row_order(parts: list[mx.array], pieces: list[tuple[int, int, int, int]]) -> mx.array:
    """Token weights that arrived slice by slice, as one vector over the flattened rows."""
    if len(parts) != len(pieces) or any(p.size != (b - a) * (d - c) for p, (a, b, c, d) in zip(parts, pieces, strict=True)):
        return mx.concatenate(parts)  # not one weight per token (experts): nobody aligns these with rows
    rows: dict[int, list[mx.array]] = {}
    for part, (a, b, left, right) in zip(parts, pieces, strict=True):
        rows.setdefault(a, []).append(part.reshape(b - a, right - left))
    return mx.concatenate([mx.concatenate(row, axis=1).reshape(-1) for row in rows.values()])


def _probe(probes: list[Probe], tensor: Tensor, module: Any, sink: Sink) -> Probe:
    probe = Probe(tensor, module, sink)
    if tensor.kind == "embedding":
        probes.append(probe)
    return probe


def _key(row: int, position: int) -> mx.array:
    return mx.random.key(SEED + row * 65_536 + position)


def _done(value: mx.array) -> mx.array:
    mx.eval(value)
    return value

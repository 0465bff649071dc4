"""A model with adapters in training: from parameters and tokens to hidden states and losses, differentiable in the parameters.

    LoRA    y = W x + c + s B A x            DoRA    y = m / |W + s B A| (W x + s B A x) + c,  the length taken as constant

Parameters are float32 masters by path, {"a": [R, I], "b": [O, R][, "m": [O]]}, banks of experts with E in front; products run
in the type of the activations. The model's own weights are never changed or differentiated. With `recompute`, a block keeps its
input alone and is computed once more on the way back. Logits exist for `CHUNK` tokens at a time, and only where there is loss.

Source: LoRA arXiv 2106.09685; DoRA arXiv 2402.09353, section 4.3 for the constant length; rsLoRA arXiv 2312.03732.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from optiq.errors import InputError
from optiq.kernels import native
from optiq.kernels.dense import dense, gather_reference
from optiq.kernels.loss import cross_entropy
from optiq.lora.batches import Batch
from optiq.lora.targets import Target, block_paths
from optiq.models import layers
from optiq.models.adapted import changing, dense_weight
from optiq.models.blocks import calling
from optiq.models.forward import Halves
from optiq.models.segments import packed
from optiq.models.topology import block_list

CHUNK = 512  # tokens whose logits are in memory at once
AGREEMENT = 0.05  # largest difference of packed and single logits, over their largest value

Parameters = dict[str, dict[str, mx.array]]


class Learner:
    """A model and the places of its adapters.

    Args:
        model: as `optiq.models.load.load` gives it; it is put into training mode.
        targets: the layers that get an adapter.
        scales: s by path.
        recompute: whether blocks are computed once more on the way back.
    """

    def __init__(self, model: Any, targets: Mapping[str, Target], scales: Mapping[str, float], recompute: bool = True) -> None:
        self.model, self.targets, self.scales = model, targets, scales
        self._recompute = recompute
        if native.module() is None:  # this form keeps packed texts apart
            name = "optiq_arch.qwen3_5.GatedDeltaNet"
            layers.use_kernels(model, {name: layers.FORMS[name]})
        model.train()
        self._halves = Halves(model)
        self._blocks = list(block_list(model))
        self._inside = [[path for path, target in targets.items() if target.block == i] for i in range(len(block_paths(model)))]
        self._outside = [path for path, target in targets.items() if target.block is None]

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self._probe("head").shape[-1])

    @property
    def width(self) -> int:
        """E."""
        return int(self._probe("body").shape[-1])

    @property
    def activation_bytes(self) -> int:
        """Bytes of one number between blocks."""
        return int(self._probe("body").dtype.size)

    def _probe(self, half: str) -> mx.array:
        """The output of a half for one token; nothing of it is computed."""
        hidden = self._halves.body(mx.zeros((1, 1), mx.int32), None)
        return hidden if half == "body" else self._halves.head(hidden)

    def hidden(self, parameters: Parameters | None, batch: Batch, dropout: Dropout | None = None) -> mx.array:
        """The last hidden states [B, L, E] of a batch.

        Args:
            parameters: by path; None: the model without adapters.
            batch: tokens, perhaps packed.
            dropout: of what enters the adapters.
        """
        adapted = nullcontext() if parameters is None else calling(self._blocks, self._arounds(parameters, batch, dropout))
        with packed(batch.lengths), adapted:
            return self._halves.body(batch.tokens, None)

    def losses(self, parameters: Parameters | None, hidden: mx.array, batch: Batch) -> mx.array:
        """Negative log-likelihood of each target, [M] float32, in nats."""
        flat = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
        own = {path: parameters[path] for path in self._outside} if parameters is not None else {}

        def losses(own: Parameters, states: mx.array, targets: mx.array) -> mx.array:
            with changing([(self.targets[path].layer, self._change(path, own, 1, None)) for path in own]):
                return cross_entropy(self._halves.head(states[None])[0], targets)

        return by_chunks(losses, own, flat, batch.targets)

    def agrees(self, first: Batch, second: Batch, both: Batch) -> bool:
        """Whether packing keeps texts apart in this model: two alone against the same two packed."""
        alone = [self._halves.head(self.hidden(None, batch)) for batch in (first, second)]
        together = self._halves.head(self.hidden(None, both))
        apart = mx.concatenate(alone, axis=1)
        return bool((mx.abs(together - apart).max() <= AGREEMENT * mx.abs(apart).max()).item())

    def _arounds(self, parameters: Parameters, batch: Batch, dropout: Dropout | None) -> list[Callable[..., Any]]:
        return [self._around({path: parameters[path] for path in paths}, batch, dropout) for paths in self._inside]

    def _around(self, own: Parameters, batch: Batch, dropout: Dropout | None) -> Callable[..., Any]:
        """A function through which a block is called: with its own adapters, and forgotten until the way back."""

        def call(plain: Callable[..., Any], x: mx.array, *args: Any, **named: Any) -> Any:
            def block(own: Parameters, x: mx.array) -> Any:
                changes = [(self.targets[path].layer, self._change(path, own, x.shape[0], dropout)) for path in own]
                with packed(batch.lengths), changing(changes):  # on the way back nobody else says so
                    return plain(x, *args, **named)

            return mx.checkpoint(block)(own, x) if self._recompute else block(own, x)

        return call

    def _change(self, path: str, own: Parameters, batch: int, dropout: Dropout | None) -> Learned:
        return Learned(own[path], self.scales[path], batch, dropout.of(path) if dropout else None)


def by_chunks(
    losses: Callable[[Parameters, mx.array, mx.array], mx.array], own: Parameters, states: mx.array, targets: mx.array
) -> mx.array:
    """losses(own, states, targets) for `CHUNK` tokens at a time, one chunk after the other, forwards and back.

    MLX would compute parts that do not need each other side by side, and hold the logits of all of them. Here each chunk waits
    for the one before it; on the way back logits are computed once more.

    Args:
        losses: of some tokens, [N].
        own: what it depends on besides.
        states: [M, E].
        targets: [M] int32.

    Returns:
        [M] float32.
    """
    pieces = [slice(start, start + CHUNK) for start in range(0, len(targets), CHUNK)]

    def after(x: mx.array, done: Any) -> mx.array:
        arrays: list[tuple[str, mx.array]] = tree_flatten(done)  # type: ignore[assignment]
        waiting: mx.array = mx.depends([x], [array for _, array in arrays])[0]
        return waiting

    @mx.custom_function
    def run(own: Parameters, states: mx.array) -> mx.array:
        found: list[mx.array] = []
        for piece in pieces:
            found.append(losses(own, after(states[piece], found[-1:]), targets[piece]))
        return mx.concatenate(found)

    @run.vjp
    def back(primals: tuple[Parameters, mx.array], cotangent: mx.array, _: mx.array) -> tuple[Parameters, mx.array]:
        own, states = primals
        total: Parameters = tree_map(mx.zeros_like, own)
        found: list[mx.array] = []
        for piece in pieces:
            gradient = mx.grad(lambda own, x, piece=piece: (losses(own, x, targets[piece]) * cotangent[piece]).sum(), (0, 1))
            mine, new = gradient(own, after(states[piece], [found[-1:], total]))
            total = tree_map(mx.add, total, mine)
            found.append(new)
        return total, mx.concatenate(found)

    found: mx.array = run(own, states)  # type: ignore[assignment]
    return found


class Dropout:
    """Zeros in what enters the adapters, drawn anew by step and layer, the same on the way back.

    Args:
        share: of the values that become zero.
        place: seed, step and batch.
        paths: of all adapters.
    """

    def __init__(self, share: float, place: tuple[int, ...], paths: Sequence[str]) -> None:
        self._share = share
        key = mx.random.key(int(np.random.SeedSequence(place).generate_state(1)[0]))
        self._keys = dict(zip(paths, mx.random.split(key, len(paths)), strict=True))

    def of(self, path: str) -> Callable[[mx.array], mx.array]:
        """The function that an adapter's input goes through."""
        keep, key = 1 - self._share, self._keys[path]
        return lambda x: mx.where(mx.random.bernoulli(keep, x.shape, key), x / keep, 0).astype(x.dtype)


class Learned:
    """The change that an adapter in training makes to a layer (`optiq.models.adapted.Change`)."""

    def __init__(
        self, part: Mapping[str, mx.array], scale: float, batch: int, dropout: Callable[[mx.array], mx.array] | None
    ) -> None:
        self.rows = range(batch)
        self._part, self._scale, self._dropout = part, scale, dropout

    def __call__(self, layer: Any, x: mx.array, y: mx.array, *rest: Any) -> mx.array:
        """See `Change`."""
        a, b = self._part["a"].astype(x.dtype), (self._scale * self._part["b"]).astype(x.dtype)
        x = self._dropout(x) if self._dropout else x
        if a.ndim == 3:  # a bank of experts; the native form has no derivative by A and B
            return y + gather_reference(gather_reference(x, a, rest[0]), b, rest[0])
        found = y + dense(dense(x, a), b)
        if "m" not in self._part:
            return found
        bias = layer.get("bias", 0)
        gain = self._part["m"] / lengths(layer, self._part, self._scale)
        scaled: mx.array = gain * (found - bias).astype(mx.float32) + bias
        return scaled.astype(y.dtype)


def lengths(layer: Any, part: Mapping[str, mx.array], scale: float) -> mx.array:
    """|W + s B A| by output, [O] float32; constant for derivatives."""
    weight = dense_weight(layer) + scale * (part["b"] @ part["a"])
    found: mx.array = mx.linalg.norm(weight, axis=1)
    return mx.stop_gradient(found)


def fresh(targets: Mapping[str, Target], ranks: Mapping[str, int], seed: int, dora: bool = False) -> Parameters:
    """Parameters that change nothing yet: A uniform in +-1 / sqrt(I), B zero, m the lengths of W's rows.

    Raises:
        InputError: DoRA for a bank of experts.
    """
    found: Parameters = {}
    for path, key in zip(targets, mx.random.split(mx.random.key(seed), len(targets)), strict=True):
        *experts, outputs, inputs = targets[path].shape
        if experts and dora:
            raise InputError(
                f"--use-dora: {path} is a bank of experts, for which there is no DoRA; leave it out of --target-modules"
            )
        a = mx.random.uniform(-(inputs**-0.5), inputs**-0.5, (*experts, ranks[path], inputs), key=key)
        found[path] = {"a": a, "b": mx.zeros((*experts, outputs, ranks[path]))}
        if dora:
            found[path]["m"] = lengths(targets[path].layer, found[path], 1.0)
    mx.eval(found)
    return found

"""Adapters that begin as the best low-rank correction of the quantization error, instead of as nothing.

    D = W - Q,  H = E[x xᵀ]        s B A = argmin over rank R of  E |(D - X) x|^2 = tr (D - X) H (D - X)ᵀ
                                   = U Uᵀ D,  U the leading R eigenvectors of D H Dᵀ

W are the weights before quantization, Q those in use, x the inputs of the layer while the quantized model reads the training
data. Rows of A get the length 1 / sqrt(3) that random ones have, B the rest. Where there is no error (a layer without codes)
the adapter stays as it was. The eigenvectors come from subspace iteration, whose shortfall against the best is below 1 % of it
(tests/lora/test_initial.py). A bank of experts has one H and an error per expert.

Data in: a learner, parameters, batches, the directory before quantization. Data out: parameters.

Source: LoftQ arXiv 2310.08659 (the error as start); CLoQ arXiv 2501.18475 (weighted by the inputs); the form without inverse
follows from X H^(1/2) = U Uᵀ D H^(1/2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from optiq.errors import InputError
from optiq.kernels.dense import dense
from optiq.lora.batches import Batch
from optiq.lora.learner import Learner, Parameters, lengths
from optiq.lora.targets import Target
from optiq.models.adapted import changing, dense_weight
from optiq.models.checkpoint import Checkpoint

ROUNDS, SPARE = 8, 8  # of subspace iteration; vectors beyond R, which make it converge
MOMENT_BYTES = 2_000_000_000  # held at once; what is left waits for another pass over the batches


def from_error(learner: Learner, parameters: Parameters, batches: Iterable[Batch], base: Path) -> Parameters:
    """Parameters that begin with the correction.

    Args:
        learner: the quantized model.
        parameters: fresh ones, whose ranks and random rows are taken.
        batches: on which inputs are observed.
        base: directory of the model before quantization.

    Raises:
        InputError: the base is another model, or quantized itself.
    """
    checkpoint = Checkpoint.open(base)
    if checkpoint.holds_codes:
        raise InputError(f"--base {base} is quantized; give the model that this one was made from")
    weights, seen, found = checkpoint.weights(), list(batches), {}
    grams: dict[str, mx.array] = {}
    waiting = _portions(learner.targets)
    for path, target in learner.targets.items():
        if waiting and path == waiting[0][0]:
            grams = inputs(learner, seen, waiting.pop(0))
        weight = weights.get(f"{path}.weight")
        if weight is None or weight.shape != target.shape:
            there = "no such weight" if weight is None else f"{weight.shape}"
            raise InputError(
                f"--base {base}: {path} is {there}, expected {target.shape}; give the model that this one was made from"
            )
        error = weight.astype(mx.float32) - dense_weight(target.layer)
        gram = grams.get(path, mx.eye(target.shape[-1]))
        found[path] = _begun(parameters[path], target, error, gram, learner.scales[path])
        mx.eval(found[path])
    return found


def inputs(learner: Learner, batches: Iterable[Batch], paths: Iterable[str]) -> dict[str, mx.array]:
    """E[x xᵀ] of some layers, [I, I] float32, by path; those outside of the blocks, and those that saw nothing, are missing."""
    probes = {path: _Probe() for path in paths if learner.targets[path].block is not None}
    for batch in batches:
        with changing([(learner.targets[path].layer, probe) for path, probe in probes.items()]):
            hidden = learner.hidden(None, batch)
        mx.eval(hidden, [probe.total for probe in probes.values() if probe.count])
    return {path: probe.total / probe.count for path, probe in probes.items() if probe.count}


def correction(error: mx.array, gram: mx.array, rank: int) -> tuple[mx.array, mx.array]:
    """U and Uᵀ D, whose product is the best approximation of D under H.

    Args:
        error: D [O, I] float32.
        gram: H [I, I] float32, positive semidefinite.
        rank: R, at most O.

    Returns:
        [O, R] and [R, I].
    """
    rows = error.shape[0]
    weighted = dense(error, gram)  # D H, H symmetric
    basis = mx.random.normal((rows, min(rows, rank + SPARE)), key=mx.random.key(0))
    for _ in range(ROUNDS):
        basis = mx.linalg.qr(weighted @ (error.T @ basis), stream=mx.cpu)[0]
    inside = basis.T @ (weighted @ (error.T @ basis))
    _, turns = mx.linalg.eigh((inside + inside.T) / 2, stream=mx.cpu)  # ascending
    u = basis @ turns[:, ::-1][:, :rank]
    return u, u.T @ error


def _portions(targets: Mapping[str, Target]) -> list[list[str]]:
    """The layers in order, cut so that the moments of one pass over the batches fit `MOMENT_BYTES`."""
    found: list[list[str]] = []
    room = 0
    for path, target in targets.items():
        size = 4 * target.shape[-1] ** 2
        if not found or size > room:
            found.append([])
            room = MOMENT_BYTES
        found[-1].append(path)
        room -= size
    return found


class _Probe:
    """A change that changes nothing and adds up what goes in (`optiq.models.adapted.Change`)."""

    rows = (0,)

    def __init__(self) -> None:
        self.total, self.count = mx.zeros(()), 0

    def __call__(self, layer: Any, x: mx.array, y: mx.array, *rest: Any) -> mx.array:
        """See `Change`."""
        flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        self.total, self.count = self.total + flat.T @ flat, self.count + flat.shape[0]
        return y


def _begun(part: dict[str, mx.array], target: Target, error: mx.array, gram: mx.array, scale: float) -> dict[str, mx.array]:
    """One adapter's arrays."""
    rank, usual = part["a"].shape[-2], 3**-0.5
    each = [correction(one, gram, rank) for one in (error if error.ndim == 3 else error[None])]
    b, a = (mx.stack(list(side)) for side in zip(*each, strict=True))
    if error.ndim == 2:
        a, b = a[0], b[0]
    size = mx.linalg.norm(a, axis=-1)
    there = (size > 1e-12 * (1 + mx.abs(error).max()))[..., None]
    safe = mx.where(there, size[..., None], 1)
    begun = {
        "a": mx.where(there, a * (usual / safe), part["a"]),
        "b": mx.where(there.swapaxes(-1, -2), b * (safe / (usual * scale)).swapaxes(-1, -2), 0),
    }
    return begun | ({"m": lengths(target.layer, begun, scale)} if "m" in part else {})

"""The gradient pass with its results on disk: one file per tensor, so that a killed pass goes on where it stopped.

A tensor's file holds the moments of each of its uses (`optiq.measure.moments`) and the weight of each token. Any
number of options and encoders can be scored from it later; only a change of the model or of the tokens asks for
another pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from optiq import files
from optiq.events import QUIET, Events
from optiq.measure import walk
from optiq.measure.hidden import HiddenStore
from optiq.measure.moments import Moments
from optiq.models.stream import Stream
from optiq.models.topology import Tensor


@dataclass(frozen=True)
class Statistics:
    """The results of one pass in a directory.

    Args:
        path: where the files are.
        tokens: number of tokens that the pass saw.
    """

    path: Path
    tokens: int

    def file(self, tensor: Tensor) -> Path:
        """The file of one tensor."""
        return self.path / f"{tensor.name}.npz"

    def uses(self, tensor: Tensor) -> list[Moments]:
        """The moments of each use; none for a tensor that nothing flowed through."""
        with np.load(self.file(tensor)) as stored:
            count = sum(name.startswith("row") for name in stored.files)
            return [Moments(mx.array(stored[f"row{i}"]), mx.array(stored[f"gram{i}"]), mx.ones(())) for i in range(count)]

    def token_weights(self, tensor: Tensor) -> np.ndarray | None:
        """The weight of each token [N * L] in row order, or None for a table lookup."""
        with np.load(self.file(tensor)) as stored:
            return stored["weights"] if "weights" in stored.files else None


def gather(stream: Stream, ids: np.ndarray, path: Path, events: Events = QUIET) -> Statistics:
    """Run the pass, or what is left of it; hidden states are removed at the end.

    Args:
        ids: calibration tokens [N, L].
        path: directory of the results.
    """
    found = Statistics(path, int(ids.size))
    done = path / "done.json"
    if done.exists():
        return found

    def keep(tensor: Tensor, weight: mx.array, uses: list[Moments], weights: mx.array | None) -> None:
        arrays = {f"row{i}": np.array(m.row) for i, m in enumerate(uses)}
        arrays |= {f"gram{i}": np.array(m.gram) for i, m in enumerate(uses)}
        if weights is not None:
            arrays["weights"] = np.array(weights)
        with files.writing(found.file(tensor)) as handle:
            np.savez(handle, **arrays)

    width = max((t.shape[-1] for t in stream.topology.tensors if t.kind == "embedding"), default=1)
    store = HiddenStore(path / "hidden", 4 * ids.size * width * (stream.depth + 1))
    walk.forward(stream, ids, store, events)
    walk.backward(stream, ids, store, keep, events)
    files.write_json(done, {"schema": 1, "tokens": found.tokens, "tensors": len(stream.topology.tensors)})
    store.clear()
    return found


def product_operations(stream: Stream, tokens: int, options: int) -> int:
    """Multiply-adds of the matrix products of one pass and of scoring every option, from the shapes.

    Forward, recomputed forward and backward (two products) over the tensors; one second moment per tensor; one product of the
    coded error with it per option.
    """
    total = 0
    for tensor in stream.topology.tensors:
        size, width = int(np.prod(tensor.shape)), tensor.shape[-1]
        passes = 0 if tensor.kind == "embedding" and not stream.topology.tied else 4 * tokens * size
        total += passes + tokens * width * width + options * size * width
    return total

"""One MLX side of `lora.py` in a process of its own: `ours` (optiq) or `stock` (mlx-lm alone, optiq never imported).

    python benchmarks/lora_worker.py ours|stock

One JSON request per line on stdin, one JSON reply per line on stdout; the first request to train decides model and data:

    {"do": "about"}                                                           -> versions, threads
    {"do": "train", "model": DIR, "ids": FILE.npy, "rank": R, "recompute": true, "steps": N}
        -> {"seconds": [N], "loss": [N], "parameters": …, "peak_bytes": …}    ids [B, L + 1], one step is all of them

Every linear layer of every block has an adapter of rank R and scale 1. Nothing but the sides' own libraries is imported.
"""

# ruff: noqa: E402 (optiq goes first)

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

SIDE = sys.argv[1] if len(sys.argv) > 1 else "ours"
if SIDE == "ours":
    import optiq  # noqa: F401 (before MLX, which it gives a fast BLAS)

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

LR = 2e-4


class Ours:
    """The trainer of `optiq lora train`, step by step."""

    def __init__(self, model: str, ids: np.ndarray, rank: int, recompute: bool) -> None:
        from optiq.lora import ranks, targets
        from optiq.lora.corpus import Corpus, Part
        from optiq.lora.data import Sample
        from optiq.lora.learner import Learner
        from optiq.lora.settings import Settings
        from optiq.lora.train import Trainer
        from optiq.models.load import load_modules

        count, length = ids.shape
        units = tuple((Sample("random", tuple(row), (False, *[True] * (length - 1))),) for row in ids.tolist())
        corpus = Corpus(Part(Path("random"), {}, units, ()), None)
        settings = Settings(
            model, "random", Path(mkdtemp()), rank=rank, rank_scaling="constant", iters=1000, lr=LR, warmup=0,
            schedule="constant", batch_size=count, max_length=length, recompute=recompute,
        )  # fmt: skip
        module, _ = load_modules(Path(model))
        found = targets.find(module)
        chosen = ranks.choose(found, "constant", rank, {})
        self._trainer = Trainer(settings, corpus, Learner(module, found, dict.fromkeys(found, 1.0), recompute), chosen)
        self._now = self._trainer.start()
        self.parameters = targets.parameters(found, chosen)

    def step(self) -> float:
        """One optimizer step; its loss."""
        return self._trainer.step(self._now)[0]


class Stock:
    """The trainer of `mlx_lm lora`, called once per step with the same batch."""

    def __init__(self, model: str, ids: np.ndarray, rank: int, recompute: bool) -> None:
        import mlx.nn as nn
        from mlx.optimizers import AdamW
        from mlx_lm import load
        from mlx_lm.tuner.trainer import TrainingArgs
        from mlx_lm.tuner.utils import linear_to_lora_layers

        self._model, _ = load(model)
        self._model.freeze()
        kinds = (nn.Linear, nn.QuantizedLinear)
        keys = {name for layer in self._model.layers for name, module in layer.named_modules() if isinstance(module, kinds)}
        config = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys}
        linear_to_lora_layers(self._model, len(self._model.layers), config)
        file = str(Path(mkdtemp()) / "adapters.safetensors")
        self._args = TrainingArgs(batch_size=len(ids), iters=1, steps_per_report=1, adapter_file=file, grad_checkpoint=recompute)
        self._optimizer = AdamW(LR)
        self._batch = mx.array(ids), mx.array([[0, ids.shape[1]]] * len(ids))
        self.parameters = sum(array.size for _, array in tree_flatten(self._model.trainable_parameters()))

    def step(self) -> float:
        """One optimizer step; its loss."""
        from mlx_lm.tuner.callbacks import TrainingCallback
        from mlx_lm.tuner.trainer import train

        class Heard(TrainingCallback):
            loss = 0.0

            def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
                self.loss = train_info["train_loss"]

        def batches(**_: Any) -> Iterator[tuple[mx.array, mx.array]]:
            yield self._batch

        heard = Heard()
        train(self._model, self._optimizer, None, args=self._args, iterate_batches=batches, training_callback=heard)
        return heard.loss


class Side:
    """The requests."""

    def __init__(self) -> None:
        self._run: Ours | Stock | None = None

    def about(self) -> dict[str, Any]:
        """Versions, and which kernels compute."""
        found: dict[str, Any] = {"side": SIDE, "mlx": mx.__version__, "optiq": "optiq" in sys.modules}
        if SIDE == "ours":
            from optiq.kernels import native

            found["kernels"] = vars(native.choice())
        return found

    def train(self, model: str, ids: str, rank: int, recompute: bool, steps: int) -> dict[str, Any]:
        """Steps, each with its seconds and its loss."""
        if self._run is None:
            self._run = {"ours": Ours, "stock": Stock}[SIDE](model, np.load(ids), rank, recompute)
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            losses.append(self._run.step())
            seconds.append(time.perf_counter() - start)
        scale = 1 if platform.system() == "Darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        return {"seconds": seconds, "loss": losses, "parameters": self._run.parameters, "peak_bytes": peak}


def main() -> None:
    """Answer requests until stdin ends."""
    side = Side()
    answers, sys.stdout = sys.stdout, sys.stderr  # the stock trainer prints
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(side, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()

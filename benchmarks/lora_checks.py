"""What `lora.py` looks at inside of a model: packed against padded batches, margins of held-out pairs. Needs optiq alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from optiq.lora import corpus, targets
from optiq.lora.adapters import load_adapter
from optiq.lora.batches import collate
from optiq.lora.learner import Learner, Parameters, fresh
from optiq.lora.objectives import Dpo, Sft
from optiq.lora.settings import Settings
from optiq.measure.divergence import interval
from optiq.models import chat, load

SAMPLES, RANK, LENGTH = 6, 8, 256


def packing(model: Path, data: Path) -> dict[str, float]:
    """How far losses and gradients of a packed batch are from those of the same samples below each other.

    Returns:
        loss: largest difference of a token's loss over the largest loss.
        gradient: largest difference of a number of the gradient over the largest.
    """
    module, _ = load.load_modules(model)
    found = targets.find(module)
    learner = Learner(module, found, dict.fromkeys(found, 1.0))
    parameters = fresh(found, {path: min(RANK, *target.shape) for path, target in found.items()}, 0)
    parameters = {path: part | {"b": 0.02 * mx.random.normal(part["b"].shape)} for path, part in parameters.items()}
    settings = Settings(str(model), str(data), Path("."), max_length=LENGTH)
    samples = corpus.load(settings, chat.load_tokenizer(model)).train.samples[:SAMPLES]
    objective, results = Sft(learner, settings), []
    for packed in (True, False):
        batch = collate(samples, packed)
        losses = learner.losses(parameters, learner.hidden(parameters, batch), batch)
        gradient = mx.grad(lambda own, batch=batch: objective(own, batch, None, None)[0])(parameters)
        flat = mx.concatenate([array.reshape(-1) for _, array in tree_flatten(gradient)])
        mx.eval(losses, flat)
        results.append((losses, flat))
    pairs = zip(*results, strict=True)
    loss, gradient = (float(mx.abs(one - other).max() / mx.abs(other).max()) for one, other in pairs)
    return {"loss": loss, "gradient": gradient, "samples": len(samples), "tokens": sum(len(sample.tokens) for sample in samples)}


def margins(model: Path, adapter: Path, data: Path, beta: float, length: int) -> dict[str, Any]:
    """beta (log-odds of chosen over rejected with the adapter, less that without) of each held-out pair, in nats."""
    module, _ = load.load_modules(model)
    parts = load_adapter(adapter, module).parts
    found = {path: target for path, target in targets.find(module).items() if path in parts}
    learner = Learner(module, found, {path: part.scale for path, part in parts.items()})
    parameters: Parameters = {path: {"a": parts[path].a, "b": parts[path].b} for path in found}
    settings = Settings(str(model), str(data), Path("."), method="dpo", dpo_beta=beta, max_length=length)
    objective, values = Dpo(learner, settings), []
    held = corpus.load(settings, chat.load_tokenizer(model)).valid
    if held is None:
        raise SystemExit(f"{data}: no valid.jsonl")
    for unit in held.units:
        batch = collate(unit, False)
        values.append(objective(parameters, batch, objective.prepare(batch), None)[1].item())
    low, high = interval(np.array(values))
    return {
        "mean": float(np.mean(values)),
        "ci95": [low, high],
        "raised": float(np.mean(np.array(values) > 0)),
        "pairs": len(values),
    }

"""torch and transformers as peers: dense products and one training step. Run by torch's own Python, without optiq.

    OPTIQ_TORCH_PYTHON benchmarks/peer_torch.py MODEL_DIR IDS.npy THREADS

A worker: one JSON request per line on stdin, one JSON reply per line on stdout.

    {"do": "about"}                                              -> {"torch": …, "transformers": …, "features": …}
    {"do": "dense", "dtype": "bfloat16", "shape": [M, K, N]}     -> {"seconds": …}
    {"do": "train"}                                              -> {"seconds": …, "loss": …, "gradient_norm": …}

A dense product is `linear(x [M, K], w [N, K])`, the form of a layer; seconds are of one product, averaged over as many
as fill `FILL_SECONDS` after one that warms up. A training step is the mean cross-entropy of the next token over all
positions, in float32, and its gradient with respect to every parameter.
"""

from __future__ import annotations

import json
import sys
import time
from functools import cache
from typing import Any

import numpy as np
import torch

FILL_SECONDS = 0.5


def about() -> dict[str, Any]:
    """Versions, and what torch says of the processor."""
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "features": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),
    }


@cache
def operands(dtype: str, rows: int, inner: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] and w [N, K], normal."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    return torch.randn(rows, inner).to(kind), torch.randn(columns, inner).to(kind)


def dense(dtype: str, shape: list[int]) -> dict[str, float]:
    """Seconds of one product."""
    x, w = operands(dtype, *shape)
    with torch.inference_mode():
        torch.nn.functional.linear(x, w)
        count, start = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - start < FILL_SECONDS:
            torch.nn.functional.linear(x, w)
            count += 1
        return {"seconds": (time.perf_counter() - start) / count}


@cache
def training(model_dir: str, ids: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model in float32 and in training mode, and its token ids [B, L]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return model.train(), torch.from_numpy(np.load(ids).astype(np.int64))


def train(model_dir: str, ids: str) -> dict[str, float]:
    """Seconds of one step forward and back, and its loss in nats per token.

    Raises:
        SystemExit: a parameter was left without a gradient.
    """
    model, tokens = training(model_dir, ids)
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    logits = model(tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    seconds = time.perf_counter() - start
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    if missing:
        raise SystemExit(f"no gradient for {missing}")
    squares = torch.stack([value.grad.square().sum() for value in model.parameters()])
    return {"seconds": seconds, "loss": loss.item(), "gradient_norm": squares.sum().sqrt().item()}


def main() -> None:
    """Answer requests until stdin ends."""
    model_dir, ids, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        if what == "about":
            reply = about()
        elif what == "dense":
            reply = dense(**request)
        else:
            reply = train(model_dir, ids)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()

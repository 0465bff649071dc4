"""peft on transformers and torch as a peer of `lora.py`. Run by torch's own Python, without optiq.

    OPTIQ_TORCH_PYTHON benchmarks/peer_peft.py THREADS

A worker with the requests of `lora_worker.py`; `train` also takes {"dtype": "bfloat16" or "float32"}, that of the weights and
activations. Adapters and AdamW are float32 where peft keeps them so (`autocast_adapter_dtype`), the loss is transformers' own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np
import peft
import torch
import transformers

LR = 2e-4


class Run:
    """A model with adapters, an optimizer and one batch."""

    def __init__(self, model: str, ids: str, rank: int, recompute: bool, dtype: str) -> None:
        base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        inside = base.model.layers.named_modules(prefix="model.layers")
        linear = {name: module for name, module in inside if isinstance(module, torch.nn.Linear)}
        ranks = {name: min(rank, *module.weight.shape) for name, module in linear.items()}  # as ours
        config = peft.LoraConfig(
            r=rank, rank_pattern=ranks, lora_alpha=rank, alpha_pattern=ranks, target_modules=list(linear), task_type="CAUSAL_LM"
        )
        self._model = peft.get_peft_model(base, config).train()
        if recompute:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
            self._model.enable_input_require_grads()
        trained = [value for value in self._model.parameters() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=LR)
        self._tokens = torch.from_numpy(np.load(ids).astype(np.int64))
        self.parameters = sum(value.numel() for value in trained)

    def step(self) -> float:
        """One optimizer step; its loss."""
        self._optimizer.zero_grad(set_to_none=True)
        inputs, targets = self._tokens[:, :-1], self._tokens[:, 1:]
        logits = self._model(inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        self._optimizer.step()
        return loss.item()


def about() -> dict[str, Any]:
    """Versions, and what torch says of the processor."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "features": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Answer requests until stdin ends."""
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    run = None
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("do") == "about":
            print(json.dumps(about()), file=answers, flush=True)
            continue
        steps = request.pop("steps")
        run = run or Run(**request)
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            losses.append(run.step())
            seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        reply = {"seconds": seconds, "loss": losses, "parameters": run.parameters, "peak_bytes": peak}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()

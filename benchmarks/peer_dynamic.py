"""One child process of `peers.py`: mlx-lm's dynamic_quant with our calibration tokens, or the float32 copy.

    python peer_dynamic.py MODEL FLOAT32_MODEL OUT SENSITIVITIES.json LOW HIGH TARGET
    python peer_dynamic.py --float32 MODEL OUT

The sensitivities and the threshold are mlx-lm's own functions; its command cannot be called because it downloads its
calibration text. Sensitivities are measured on the float32 copy, the choice and the stored tensors are bfloat16.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx

ROWS = 16  # per domain, 96 documents in all: about ten minutes for each pair of widths on two cores
LENGTH = 512  # what mlx-lm's command uses
SEED = 123  # its default


def float32_copy(model_dir: Path, out: Path) -> None:
    """Write the same checkpoint with every tensor in float32 and `config.json` unchanged."""
    part = out.with_suffix(".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in model_dir.iterdir():
        if path.suffix == ".safetensors":
            weights = {name: w.astype(mx.float32) for name, w in mx.load(str(path)).items()}
            mx.save_safetensors(str(part / path.name), weights, metadata={"format": "pt"})
        elif path.is_file():
            (part / path.name).write_bytes(path.read_bytes())
    part.rename(out)


def calibration(model_dir: Path) -> mx.array:
    """Our calibration tokens `[N, L]`, L = 512."""
    from optiq.measure.text import samples
    from optiq.measure.tokens import tokenise
    from optiq.models.chat import load_tokenizer

    return mx.array(tokenise(samples("calibration"), load_tokenizer(model_dir), LENGTH, ROWS).ids)


def sensitivities(model_dir: Path, source: Path, low: int, high: int) -> list[list[object]]:
    """mlx-lm's alignment score of each quantizable layer, group size 64 for both widths."""
    from mlx_lm import load
    from mlx_lm.quant.dynamic_quant import estimate_sensitivities

    mx.random.seed(SEED)
    model = load(str(model_dir))[0]
    scores = estimate_sensitivities(model, calibration(source), low, 64, high, 64)
    return [list(pair) for pair in scores]


def main() -> None:
    """Run as the child of `peers.py`."""
    if sys.argv[1] == "--float32":
        float32_copy(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    model_dir, dense, out, table = map(Path, sys.argv[1:5])
    low, high, target = int(sys.argv[5]), int(sys.argv[6]), float(sys.argv[7])
    if not table.exists():
        scores = sensitivities(dense, model_dir, low, high)
        table.write_text(json.dumps(scores))

    from mlx_lm import load
    from mlx_lm.quant.dynamic_quant import estimate_threshold
    from mlx_lm.utils import quantize_model, save

    model, tokenizer, config = load(str(model_dir), return_config=True)
    scores = dict(json.loads(table.read_text()))
    threshold = estimate_threshold(
        model, scores, target_bpw=target, low_bits=low, low_group_size=64, high_bits=high, high_group_size=64
    )

    def predicate(path: str, module: object) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized"):
            return False
        return {"bits": high, "group_size": 64} if scores[path] > threshold else True

    model, config = quantize_model(model, config, group_size=64, bits=low, quant_predicate=predicate)
    save(out, str(model_dir), model, tokenizer, config)


if __name__ == "__main__":
    main()

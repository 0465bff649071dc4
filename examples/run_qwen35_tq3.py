"""TurboQuant at 3 bits under stock mlx-lm: text, speed, and what the caches take beside plain ones.

    python examples/run_qwen35_tq3.py [MODEL] [--prompt TEXT] [--max-tokens N] [--bits 1|2|3|4]

MODEL is a directory that mlx-lm loads; without it the tiny model beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from turboquant_mlx import TurboQuantKVCache, apply_patch  # isort: skip  (before mlx, so that it finds a fast BLAS)

from mlx_lm import load, stream_generate
from mlx_lm.models.cache import KVCache, make_prompt_cache

PROMPT = "Explain why KV-cache compression matters for long-context decoding."


def main() -> None:
    """Generate twice, with plain caches and with packed ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=Path(__file__).resolve().parent / "tiny-qwen3.5")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--bits", type=int, default=3)
    args = parser.parse_args()

    model, tokenizer = load(str(args.model))
    apply_patch()
    messages = [{"role": "user", "content": args.prompt}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    plain = make_prompt_cache(model)
    packed = [TurboQuantKVCache(bits=args.bits) if isinstance(c, KVCache) else c for c in make_prompt_cache(model)]
    for name, caches in (("KVCache", plain), (f"TurboQuantKVCache(bits={args.bits})", packed)):
        text, last = "", None
        for last in stream_generate(model, tokenizer, prompt, max_tokens=args.max_tokens, prompt_cache=caches):
            text += last.text
        print(f"--- {name}\n{text}")
        print(f"{rate(last):.1f} tokens/s; key/value caches {kv_bytes(caches):,} bytes for {len(prompt) + tokens(last)} tokens\n")


def kv_bytes(caches: list[Any]) -> int:
    """Bytes of the attention layers' caches; recurrent layers keep a state of one size."""
    return sum(cache.nbytes for cache in caches if isinstance(cache, KVCache | TurboQuantKVCache))


def rate(last: Any) -> float:
    """Tokens per second of a generation; 0 where there was none."""
    return last.generation_tps if last else 0.0


def tokens(last: Any) -> int:
    """How many tokens it made."""
    return last.generation_tokens if last else 0


if __name__ == "__main__":
    main()

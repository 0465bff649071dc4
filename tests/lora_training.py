"""Small data and runs for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optiq.lora.settings import Settings

TINY = Path(__file__).parents[1] / "examples" / "tiny-qwen3.5"
WORDS = ("red", "blue", "green", "black", "white", "brown")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(reply: str, question: str = "What is it?") -> dict[str, Any]:
    """A record of messages."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def folder(path: Path, train: int = 6, valid: int = 2) -> Path:
    """A directory of short conversations."""
    rows = [chat(f"It is a {WORDS[i % 6]} stone.", f"What do you see, number {i}?") for i in range(train + valid)]
    write(path / "train.jsonl", rows[:train])
    write(path / "valid.jsonl", rows[train:])
    return path


def preferences(path: Path, train: int = 6, valid: int = 2) -> Path:
    """A directory of preferences for one word."""
    rows = [
        {"prompt": f"What is number {i}?", "chosen": f"A {WORDS[i % 6]} stone.", "rejected": f"No {WORDS[i % 6]} thing at all."}
        for i in range(train + valid)
    ]
    write(path / "train.jsonl", rows[:train])
    write(path / "valid.jsonl", rows[train:])
    return path


def settings(data: Path, output: Path, **changes: Any) -> Settings:
    """A short run on two layers of the embedded model."""
    given: dict[str, Any] = {
        "rank": 2,
        "num_layers": 2,
        "iters": 4,
        "lr": 2e-3,
        "max_length": 48,
        "report_every": 1,
        "eval_every": 2,
        "save_every": 1,
        **changes,
    }
    return Settings(str(TINY), str(data), output, **given)

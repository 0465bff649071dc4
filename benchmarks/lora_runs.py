"""The runs of `optiq lora train` that `lora.py` compares, and the tasks that they learn. A finished run is kept with its options.

In: `../shared/data/train`. Out: tasks and runs below `build/lora`; a run that was killed goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from ours import CALIBRATION

from optiq.models.chat import load_tokenizer

WORK = harness.BUILD / "lora"
DATA = harness.SHARED / "data" / "train"
PAIR_TOKENS, TRAIN_PAIRS = 768, 80


def quantized() -> Path:
    """The embedded model at 4.5 bits per weight, as `optiq convert` makes it, with its plan; made on first use."""
    out = WORK / "quantized"
    if not out.exists():
        options = ("--target-bpw", 4.5, *CALIBRATION, "--no-verify", "--work", WORK / "stages", "-o", out)
        harness.run(harness.command("convert", harness.MODEL, *options), WORK / "quantized.log")
    return out


def task() -> Path:
    """Questions about tables to SQL (wikisql): the prompt is all up to the answer; 1000 to learn, 100 held out."""
    out = WORK / "wikisql"
    for name in ("train", "valid"):
        texts = [json.loads(line)["text"] for line in (DATA / "mlx_lora_wikisql" / f"{name}.jsonl").read_text().splitlines()]
        rows = [dict(zip(("prompt", "completion"), text.split("\nA: "), strict=True)) for text in texts]
        _write(out / f"{name}.jsonl", rows)
    return out


def pairs() -> Path:
    """Preferences between two replies (the pairs of dpo_en_demo that are not too long); a part of them held out."""
    tokenizer, rows = load_tokenizer(harness.MODEL), []
    for entry in json.loads((DATA / "llamafactory" / "dpo_en_demo.json").read_text()):
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        prompt = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in entry["conversations"]]
        chosen, rejected = (entry[key]["value"] for key in ("chosen", "rejected"))
        before = sum(len(tokenizer.encode(turn["content"])) for turn in prompt)
        longest = max(len(tokenizer.encode(reply)) for reply in (chosen, rejected))
        if chosen and rejected and before + longest <= PAIR_TOKENS - 16 * len(prompt):
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    _write(WORK / "pairs" / "train.jsonl", rows[:TRAIN_PAIRS])
    _write(WORK / "pairs" / "valid.jsonl", rows[TRAIN_PAIRS:])
    return WORK / "pairs"


def train(name: str, model: Path, data: Path, *options: object) -> dict[str, Any]:
    """What `optiq lora train` reports, `adapter` being its directory."""
    record, words = WORK / "runs" / f"{name}.json", [str(word) for word in (model, "--data", data, *options)]
    if record.exists():
        kept: dict[str, Any] = json.loads(record.read_text())
        if kept["options"] == words:
            return kept
    out, log = WORK / "runs" / name, WORK / "runs" / f"{name}.log"
    command = harness.command("lora", "train", *words, "-o", out, "--json", "--events", "quiet")
    if (out / "adapter_config.json").exists():
        command.append("--overwrite")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        done = subprocess.run(
            command, env=harness.environment(), cwd=harness.ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nexited with {done.returncode}: {done.stdout[-500:]}{log.read_text()[-2000:]}")
    found = json.loads(done.stdout) | {"options": words, "commit": harness.commit()}
    record.write_text(json.dumps(found, indent=1) + "\n")
    return found


def killed(name: str, model: Path, data: Path, options: Sequence[object], steps: Sequence[int]) -> bytes:
    """The weights of an adapter whose run is killed as soon as its log has reached each of some steps, and goes on each time."""
    out = WORK / "runs" / name
    command = harness.command("lora", "train", model, "--data", data, *options, "-o", out, "--json", "--events", "quiet")
    for step in steps:
        child = subprocess.Popen(command, env=harness.environment(), cwd=harness.ROOT, stdout=subprocess.DEVNULL)
        while child.poll() is None and logged(out) < step:
            time.sleep(0.01)
        if child.poll() is not None:
            raise SystemExit(f"{' '.join(command)}\nended before step {step}")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    harness.run(command, WORK / "runs" / f"{name}.log")
    return (out / "adapter_model.safetensors").read_bytes()


def logged(out: Path) -> int:
    """The last step in a run's log."""
    log = out / "train.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

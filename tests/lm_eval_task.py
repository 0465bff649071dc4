"""The task of lm-eval in the guide to evaluation: run against a server, its log-likelihoods beside those of an engine of ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optiq.serve.engine import Engine
from optiq.serve.request import Progress, Request

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "evaluation.md"
ADDRESS = "http://127.0.0.1:8080"


def block(language: str) -> str:
    """The guide's only block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


def run(python: str, url: str, model: Path, folder: Path) -> list[dict[str, Any]]:
    """lm-eval's logged samples.

    Args:
        python: of an environment with lm-eval[api] and transformers.
        url: of a server that calls the embedded model `tiny-qwen3.5`.
        model: directory with the tokenizer.
        folder: where the task's files and the results go.
    """
    (folder / "capitals.jsonl").write_text(block("json"))
    (folder / "capitals.yaml").write_text(block("yaml"))
    command = block("bash").replace(ADDRESS, url).replace("examples/tiny-qwen3.5", str(model))
    command = command.replace("lm_eval run", f"{python} -m lm_eval run")
    alone = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": ""}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=alone, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = folder.glob("out/*/samples_capitals_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def pairs(rows: Sequence[dict[str, Any]], engine: Engine, tokenizer: Any) -> list[tuple[float, float, list[int], int]]:
    """Of every choice: lm-eval's log-likelihood, the engine's, the token ids, and where the choice begins in them."""
    found = []
    for row in rows:
        for asked, answer in zip(row["arguments"].values(), row["resps"], strict=True):
            ids = tokenizer.encode(asked["arg_0"] + asked["arg_1"], add_special_tokens=False)
            begin = len(tokenizer.encode(asked["arg_0"], add_special_tokens=False))
            found.append((float(answer[0][0]), sum(_scored(engine, ids)[begin - 1 :]), ids, begin))
    return found


def _scored(engine: Engine, ids: Sequence[int]) -> list[float]:
    """Log probabilities of all tokens but the first."""
    engine.submit(Request(tuple(ids), max_tokens=1, prompt_logprobs=0))
    found: list[float] = []
    while not engine.idle:
        found += [one.logprob for event in engine.step() if isinstance(event, Progress) for one in event.scored]
    return found

"""The guide's task of lm-eval runs through our server, and its log-likelihoods are ours.

lm-eval lives in an environment of its own: OPTIQ_LMEVAL_PYTHON names that one's Python.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from optiq.models.load import load
from optiq.serve.engine import Engine
from optiq.serve.request import Progress, Request
from serve_locally import app_of, listening, tiny_engine, tiny_served, tokenizer_of

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "evaluation.md"
ADDRESS = "http://127.0.0.1:8080"


def _block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


def _scored(engine: Engine, ids: Sequence[int]) -> list[float]:
    """Log probabilities of all tokens but the first."""
    engine.submit(Request(tuple(ids), max_tokens=1, prompt_logprobs=0))
    found: list[float] = []
    while not engine.idle:
        found += [one.logprob for event in engine.step() if isinstance(event, Progress) for one in event.scored]
    return found


@pytest.mark.slow
def test_log_likelihoods_are_ours(tmp_path: Path, tiny_model: Path) -> None:
    python = os.environ.get("OPTIQ_LMEVAL_PYTHON")
    if python is None:
        pytest.skip("OPTIQ_LMEVAL_PYTHON does not name a Python that has lm-eval[api] and transformers")
    (tmp_path / "capitals.jsonl").write_text(_block("json"))
    (tmp_path / "capitals.yaml").write_text(_block("yaml"))
    served = tiny_served(tiny_engine, tokenizer_of(), id="tiny-qwen3.5")
    with listening(app_of(served)) as url:
        command = _block("bash").replace(ADDRESS, url).replace("examples/tiny-qwen3.5", str(tiny_model))
        command = command.replace("lm_eval run", f"{python} -m lm_eval run")
        quiet = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": "",
        }
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=quiet, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
    served.gateway.close()
    (samples,) = tmp_path.glob("out/*/samples_capitals_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    model, tokenizer = load(tiny_model)
    engine = tiny_engine()
    compared = 0
    for row in rows:
        likelihoods = [float(answer[0][0]) for answer in row["resps"]]
        for asked, theirs in zip(row["arguments"].values(), likelihoods, strict=True):
            ids = tokenizer.encode(asked["arg_0"] + asked["arg_1"], add_special_tokens=False)
            begin = len(tokenizer.encode(asked["arg_0"], add_special_tokens=False))
            ours = sum(_scored(engine, ids)[begin - 1 :])
            assert theirs == pytest.approx(ours, abs=1e-6)
            logits = model(mx.array([ids]))[0].astype(mx.float32)
            each = [(logits[n - 1] - mx.logsumexp(logits[n - 1]))[ids[n]].item() for n in range(begin, len(ids))]
            assert theirs == pytest.approx(sum(each), abs=0.05)  # bf16 products of another shape
            compared += 1
        assert row["acc"] == float(likelihoods.index(max(likelihoods)) == row["doc"]["answer"])
    assert compared == 4

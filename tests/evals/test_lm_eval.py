"""The guide's task of lm-eval runs through our server, and its log-likelihoods are ours.

lm-eval lives in an environment of its own: OPTIQ_LMEVAL_PYTHON names that one's Python.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import pytest

import lm_eval_task
from optiq.models.load import load
from serve_locally import app_of, listening, tiny_engine, tiny_served, tokenizer_of


@pytest.mark.slow
def test_log_likelihoods_are_ours(tmp_path: Path, tiny_model: Path) -> None:
    python = os.environ.get("OPTIQ_LMEVAL_PYTHON")
    if python is None:
        pytest.skip("OPTIQ_LMEVAL_PYTHON does not name a Python that has lm-eval[api] and transformers")
    served = tiny_served(tiny_engine, tokenizer_of(), id="tiny-qwen3.5")
    with listening(app_of(served)) as url:
        rows = lm_eval_task.run(python, url, tiny_model, tmp_path)
    served.gateway.close()
    model, tokenizer = load(tiny_model)
    compared = lm_eval_task.pairs(rows, tiny_engine(), tokenizer)
    assert len(compared) == 4
    for theirs, ours, ids, begin in compared:
        assert theirs == pytest.approx(ours, abs=1e-6)
        logits = model(mx.array([ids]))[0].astype(mx.float32)
        each = [(logits[n - 1] - mx.logsumexp(logits[n - 1]))[ids[n]].item() for n in range(begin, len(ids))]
        assert theirs == pytest.approx(sum(each), abs=0.05)  # bf16 products of another shape
    for row in rows:
        likelihoods = [float(answer[0][0]) for answer in row["resps"]]
        assert row["acc"] == float(likelihoods.index(max(likelihoods)) == row["doc"]["answer"])

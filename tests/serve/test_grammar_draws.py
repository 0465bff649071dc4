"""Grammars and samplers together: rows of one batch, each with its own grammar or none, drawn from random logits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_tokenizer

from optiq.generate.sampler import Sampler, draw_rows
from optiq.generate.sampling import Sampling
from optiq.serve.grammar import Compiler, State
from optiq.serve.grammar_spec import GrammarSpec

WIDTH, END = 4200, 4076


def test_rows_keep_to_their_grammars_and_to_their_draws() -> None:
    tokenizer = load_tokenizer(Path(__file__).parents[2] / "examples" / "tiny-qwen3.5")
    compiler = Compiler(tokenizer, WIDTH, {END})
    point = {"type": "object", "properties": {"x": {"enum": [1, 22]}}, "required": ["x"], "additionalProperties": False}
    specs = [
        GrammarSpec.json_schema(point),
        None,
        GrammarSpec("regex", "[ab]{3,6}"),
        GrammarSpec.choice(["yes", "no", "perhaps"]),
        GrammarSpec.json_schema(point),
    ]
    settings = [
        Sampling(temperature=1.0, top_k=20, presence_penalty=1.5, seed=1),
        Sampling(temperature=1.0, seed=2),
        Sampling(),
        Sampling(temperature=0.7, top_p=0.9, seed=4),
        Sampling(temperature=1.0, top_k=20, min_p=0.01, seed=5),
    ]
    rng = np.random.default_rng(0)
    logits = [mx.array(3 * rng.standard_normal((len(specs), WIDTH)), mx.bfloat16) for _ in range(400)]

    def replies(rows: list[int]) -> list[list[int]]:
        states: list[State | None] = [None if (spec := specs[row]) is None else compiler.compile(spec).start() for row in rows]
        samplers, found = [Sampler(settings[row]) for row in rows], [list[int]() for _ in rows]
        for x in logits:
            live = [i for i, state in enumerate(states) if (len(found[i]) < 30 if state is None else not state.finished)]
            if not live:
                break
            masks = [None if (state := states[i]) is None else state.mask() for i in live]
            for i, token in zip(
                live, draw_rows([samplers[i] for i in live], x[mx.array([rows[i] for i in live])], masks).tolist(), strict=True
            ):
                if (state := states[i]) is not None:
                    state.advance(token)
                found[i].append(token)
        return found

    together = replies(list(range(len(specs))))
    assert together == [replies([row])[0] for row in range(len(specs))]
    texts = [tokenizer.decode([token for token in row if token != END]) for row in together]
    assert json.loads(texts[0])["x"] in (1, 22) and json.loads(texts[4])["x"] in (1, 22)
    assert re.fullmatch("[ab]{3,6}", texts[2]) and texts[3] in ("yes", "no", "perhaps")
    assert len(together[1]) == 30

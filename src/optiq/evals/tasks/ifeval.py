"""IFEval: 541 prompts with instructions that rules can check; a prompt counts where all of its instructions are followed.

Protocol: all prompts, one user turn, 1,280 tokens, greedy; the score is strict, per prompt. Loose verdicts (markdown stars, the
first and the last line may be left out) stand beside it.
Source: Zhou et al., 2023 (arXiv 2311.07911); the token limit is that of lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from optiq.evals.data import Data
from optiq.evals.instructions import follows
from optiq.evals.task import Answer, Sample, Verdict, pick


@dataclass(frozen=True)
class IfEval:
    """Instructions that can be checked.

    Args:
        count: prompts; 0 for all.
        max_tokens: of a reply.
    """

    name: ClassVar[str] = "ifeval"
    about: ClassVar[str] = "instructions that rules can check, strict per prompt"
    runs_programs: ClassVar[bool] = False
    count: int = 0
    max_tokens: int = 1280

    def samples(self, data: Data) -> list[Sample]:
        """The prompts, each with its instructions."""
        return [
            Sample(
                id=f"ifeval/{row['key']}",
                gold=[[kind, given] for kind, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)],
                messages=({"role": "user", "content": row["prompt"]},),
                max_tokens=self.max_tokens,
            )
            for row in pick(data.jsonl("ifeval/input_data.jsonl"), self.count)
        ]

    def score(self, sample: Sample, answer: Answer) -> Verdict:
        """Right if every instruction is followed; the verdict on each, strict and loose, is in the details."""
        strict = [follows(kind, answer.text, given) for kind, given in sample.gold]
        loose = [any(follows(kind, text, given) for text in variants(answer.text)) for kind, given in sample.gold]
        kinds = [kind for kind, _ in sample.gold]
        return Verdict(all(strict), {"kinds": kinds, "strict": strict, "loose": loose, "also": {"loose": all(loose)}})


def variants(text: str) -> Iterator[str]:
    """The eight readings of a loose verdict: with and without stars; without the first line, the last, both."""
    lines = text.split("\n")
    cuts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    yield from cuts
    yield from (cut.replace("*", "") for cut in cuts)

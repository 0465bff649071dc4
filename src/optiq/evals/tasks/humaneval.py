"""HumanEval: a Python function from its head and its description; right where the authors' tests pass.

Protocol: all 164 problems, one user turn that asks for the complete function in one code block, 512 tokens, greedy, one reply
each (pass@1), 5 seconds of processor time and 512 MB per program. Programs run where the caller isolates them, never here.

A program is the problem's own text (imports, helpers, the head with its description, which is a whole function), the reply's
code, the tests, and at last a mark that is printed: a program that ends early, even with code 0, has not passed. The mark is the
hash of what stands before it, which no program can know.
Source: Chen et al., "Evaluating Large Language Models Trained on Code", 2021 (arXiv 2107.03374).
"""

from __future__ import annotations

import ast
import hashlib
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from optiq.evals.data import Data
from optiq.evals.task import Answer, Sample, Trial, pick

FILE = "humaneval/HumanEval.jsonl.gz"
# The authors run programs where `__name__` is this, so that what stands under `if __name__ == "__main__":` does not run.
MODULE = "builtins"
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
_CODE = re.compile(r"^(?:from \S+ import |import \w|def \w|class \w|async def \w|@\w)", re.MULTILINE)


@dataclass(frozen=True)
class HumanEval:
    """Functions in Python.

    Args:
        count: problems; 0 for all.
        max_tokens: of a reply.
        cpu_seconds: of processor time for a program.
        memory_mb: for a program, in units of 1e6 bytes.
    """

    name: ClassVar[str] = "humaneval"
    about: ClassVar[str] = "functions in Python, judged by the authors' tests in a sandbox"
    runs_programs: ClassVar[bool] = True
    count: int = 0
    max_tokens: int = 512
    cpu_seconds: int = 5
    memory_mb: int = 512

    def samples(self, data: Data) -> list[Sample]:
        """The problems, each as one user turn."""
        return [
            Sample(
                id=f"humaneval/{row['task_id'].rpartition('/')[2]}",
                gold={key: row[key] for key in ("prompt", "entry_point", "test")},
                messages=({"role": "user", "content": ask(row["prompt"])},),
                max_tokens=self.max_tokens,
            )
            for row in pick(data.jsonl(FILE), self.count)
        ]

    def score(self, sample: Sample, answer: Answer) -> Trial:
        """The program that decides."""
        code = extract(answer.text, sample.gold["entry_point"])
        text, mark = program(sample.gold, code)
        return Trial(text, mark, self.cpu_seconds, self.memory_mb * 1_000_000, {"extracted": code})


def ask(prompt: str) -> str:
    """The user turn."""
    head = "Complete this Python function. Reply with the complete function, its imports included, in one code block."
    return f"{head}\n\n```python\n{prompt.strip()}\n```"


def extract(reply: str, entry_point: str) -> str:
    """The code of a reply: the last block that defines the function, else the first block, else what looks like code in the text.

    A block that the length cut off counts to its end. Of text without a block, what stands before the first line of code and
    after the last line with which it parses is left out.
    """
    blocks = [textwrap.dedent(found) for found in _BLOCK.findall(reply)]
    defining = [block for block in blocks if defines(block, entry_point)]
    if defining:
        return defining[-1]
    if blocks:
        return blocks[0]
    if not defines(reply, entry_point):
        return reply
    begin = _CODE.search(reply)
    lines = reply[begin.start() if begin else 0 :].split("\n")
    for end in range(len(lines), 0, -1):
        whole = "\n".join(lines[:end])
        if defines(whole, entry_point) and _parses(whole):
            return whole
    return "\n".join(lines)


def defines(code: str, name: str) -> bool:
    """Whether a line of the code begins the definition of a function, or gives the name a value."""
    return (
        re.search(rf"^[ \t]*(?:(?:async\s+)?def\s+{re.escape(name)}\s*\(|{re.escape(name)}\s*=[^=])", code, re.MULTILINE)
        is not None
    )


def program(problem: Mapping[str, Any], code: str) -> tuple[str, str]:
    """A problem's program around a reply's code, and the line that it prints at its end.

    Code without the definition is taken as the function's body.
    """
    prompt, name = str(problem["prompt"]), str(problem["entry_point"])
    if defines(code, name):
        future = _FUTURE.findall(code)  # allowed at the head of a program alone
        solution = f"{prompt}\n{_FUTURE.sub('', code)}"
    else:
        future = []
        lines = code.strip("\n").split("\n")
        indented = lines[0][:1] in (" ", "\t")
        solution = prompt + "\n".join(lines if indented else [f"    {line}" for line in lines])
    text = "\n".join([*future, f"__name__ = {MODULE!r}", solution, str(problem["test"]), f"check({name})", ""])
    mark = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}print({chr(10)!r} + {mark!r})\n", mark


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True

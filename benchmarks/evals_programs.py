"""HumanEval's canonical solutions and wrong ones, each run in the sandbox. Part of `evals.py`.

Of each problem three bodies are wrong: `return None`, `raise`, and one that is off by one, which is the canonical body with one
number, one comparison or its returned values changed. A change that the tests do not notice is equivalent for them and is
replaced by the next.
"""

from __future__ import annotations

import ast
import copy
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
from harness import Bar

from optiq.evals import run as runs
from optiq.evals.data import Data
from optiq.evals.programs import Sandboxed
from optiq.evals.task import Answer
from optiq.evals.tasks.humaneval import FILE, HumanEval
from optiq.sandbox import runner

SIMPLE = {"none": "return None", "raise": "raise RuntimeError"}
LOOSER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
AT_ONCE = 2
ONE_OFF = """\
def one_off(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return 0 if value is None else value[:-1] if len(value) else [None]
"""


def programs() -> Sandboxed:
    """The sandbox of this machine."""
    return Sandboxed(runner())


def measure(_: Any) -> dict[str, Any]:
    """Verdicts on every problem's canonical solution and on three wrong ones."""
    data, sandbox = Data(harness.SHARED / "data" / "eval"), programs()
    rows = {f"humaneval/{row['task_id'].rpartition('/')[2]}": row for row in data.jsonl(FILE)}
    samples = HumanEval().samples(data)

    def one(sample: Any) -> dict[str, Any]:
        row = rows[sample.id]

        def passes(body: str) -> bool:
            return runs.judge(HumanEval(), sample, Answer(f"```python\n{row['prompt']}{body}\n```"), sandbox).correct

        found: dict[str, Any] = {"id": sample.id, "canonical": passes(row["canonical_solution"])}
        found |= {name: passes(f"    {line}") for name, line in SIMPLE.items()}
        return found | _off_by_one(row["prompt"] + row["canonical_solution"], row["entry_point"], passes)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {"problems": list(pool.map(one, samples)), "sandbox": sandbox.runner.name}


def bars(part: dict[str, Any]) -> list[Bar]:
    """All canonical ones pass, no wrong one does."""
    rows = part["problems"]
    replaced = sum(len(row["replaced"]) for row in rows)
    found = [
        Bar("7.canonical", "HumanEval: canonical solutions that pass", sum(row["canonical"] for row in rows), "of 164", 164, ">=",
            f"sandbox: {part['sandbox']}")
    ]  # fmt: skip
    told = {
        "none": "return None",
        "raise": "raise",
        "off_by_one": f"one change of the canonical body; {replaced} equivalent replaced",
    }
    for name, text in told.items():
        passing = sum(row[name] for row in rows)
        found.append(Bar(f"7.wrong_{name}", f"HumanEval: wrong bodies that pass ({name})", passing, "of 164", 0, "<=", text))
    return found


def _off_by_one(text: str, name: str, passes: Callable[[str], bool]) -> dict[str, Any]:
    """Whether the last of a problem's changes passes: false as soon as one fails; those that passed before it were equivalent."""
    replaced = []
    for what, body in changes(text, name):
        if not passes(body):
            return {"off_by_one": False, "change": what, "replaced": replaced}
        replaced.append(what)
    return {"off_by_one": True, "change": None, "replaced": replaced}


def changes(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Bodies of a function with one thing changed, and what: numbers, comparisons, at last the returned values.

    Args:
        text: the whole program.
        name: of the function.
    """
    tree = ast.parse(text)
    for place, node in enumerate(ast.walk(_function(tree, name))):
        for what, change in _changed(node):
            other = copy.deepcopy(tree)
            function = _function(other, name)
            change(list(ast.walk(function))[place])
            yield f"line {getattr(node, 'lineno', 0)}: {what}", _body(function)
    other = copy.deepcopy(tree)
    function = _function(other, name)
    for node in list(ast.walk(function)):
        if isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.Call(ast.Name("one_off", ast.Load()), [node.value], [])
    yield "returned values", f"{textwrap.indent(ONE_OFF, '    ')}{_body(function)}"


def _changed(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """Ways to change one node."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value} + 1", lambda other: setattr(other, "value", other.value + 1)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in LOOSER:
        yield "comparison", lambda other: other.ops.__setitem__(0, LOOSER[type(other.ops[0])]())


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def _body(function: ast.FunctionDef) -> str:
    """The function's body as text; its description stands in the prompt already, so that here it is a second, idle one."""
    return "\n".join("    " + line for statement in function.body for line in ast.unparse(statement).split("\n"))

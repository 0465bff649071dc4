"""The tasks, by name: one file each, and one line here."""

from __future__ import annotations

from optiq.evals.task import Task
from optiq.evals.tasks.bfcl import Bfcl
from optiq.evals.tasks.gsm8k import Gsm8k
from optiq.evals.tasks.hashhop import HashHop
from optiq.evals.tasks.humaneval import HumanEval
from optiq.evals.tasks.ifeval import IfEval
from optiq.evals.tasks.mmlu import Mmlu
from optiq.registry import Table

TASKS: Table[Task] = Table("task")
TASKS.add("mmlu", Mmlu())
TASKS.add("gsm8k", Gsm8k())
TASKS.add("ifeval", IfEval())
TASKS.add("bfcl", Bfcl())
TASKS.add("humaneval", HumanEval())
TASKS.add("hashhop", HashHop())

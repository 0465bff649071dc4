"""The tasks, by name: one file each, and one line here."""

from __future__ import annotations

from optiq.evals.task import Task
from optiq.evals.tasks.gsm8k import Gsm8k
from optiq.registry import Table

TASKS: Table[Task] = Table("task")
TASKS.add("gsm8k", Gsm8k())

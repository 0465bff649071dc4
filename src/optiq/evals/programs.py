"""Programs that models wrote, run in the sandbox of this machine: the limits of a trial as a policy. Knows no tasks."""

from __future__ import annotations

from optiq.evals.task import Outcome, Trial
from optiq.sandbox import Policy, Runner

WALL = 4.0  # seconds on the clock for each of processor time, so that a busy machine changes no verdict


class Sandboxed:
    """Runs trials.

    Args:
        runner: of `optiq.sandbox.runner`.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def run(self, trial: Trial) -> Outcome:
        """See `Programs`."""
        policy = Policy(seconds=WALL * trial.cpu_seconds, cpu_seconds=trial.cpu_seconds, memory_bytes=trial.memory_bytes)
        return self.runner.run(trial.program, policy)

"""Trials in the sandbox: limits become a policy; right, wrong and endless programs have their verdicts."""

from __future__ import annotations

from optiq.evals.programs import WALL, Sandboxed
from optiq.evals.task import Trial
from optiq.sandbox import Policy, runner

MARK = "m" * 64


class _Asked:
    """A runner that remembers what it was asked."""

    name = "asked"

    def run(self, program: str, policy: Policy, *, stdin: str = ""):
        self.asked = program, policy


def test_limits_become_a_policy() -> None:
    asked = _Asked()
    Sandboxed(asked).run(Trial("pass", MARK, 5, 512_000_000))
    program, policy = asked.asked
    assert program == "pass" and policy == Policy(seconds=5 * WALL, cpu_seconds=5, memory_bytes=512_000_000)


def test_programs_have_verdicts() -> None:
    sandbox = Sandboxed(runner())

    def verdict(program: str, cpu_seconds: float = 5):
        trial = Trial(program, MARK, cpu_seconds, 512_000_000)
        return trial.verdict(sandbox.run(trial))

    assert verdict(f"import math\nprint({MARK!r})").correct
    assert verdict(f"raise KeyError(1)\nprint({MARK!r})").details["problem"] == "KeyError"
    assert verdict("raise SystemExit(0)").details["problem"] == "ended early, code 0"
    assert not verdict(f"while True: pass\nprint({MARK!r})", cpu_seconds=1).correct
    assert not verdict(f"x = bytearray(10 ** 9)\nprint({MARK!r})").correct

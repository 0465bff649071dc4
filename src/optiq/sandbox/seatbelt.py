"""macOS: the system's own sandbox, Seatbelt, by `sandbox-exec`.

The profile denies everything that it does not name. Apple calls the command deprecated and keeps it; there is no other way for a
program that is not an application bundle.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optiq.sandbox.launch import Launch, environment, interpreter_folders, python_words
from optiq.sandbox.policy import Policy

_SYSTEM = ("/usr", "/bin", "/System", "/Library/Developer", "/Library/Frameworks", "/opt/homebrew", "/private/var/db/timezone")


class Seatbelt:
    """See `man sandbox-exec`."""

    name = "seatbelt"

    def __init__(self, interpreter: str) -> None:
        self._interpreter = interpreter

    @staticmethod
    def missing() -> str | None:
        """Why there is no such launcher here, or None."""
        if platform.system() != "Darwin":
            return "Seatbelt is a part of macOS"
        return None if shutil.which("sandbox-exec") else "sandbox-exec is missing"

    @contextmanager
    def launch(self, program: int, policy: Policy) -> Iterator[Launch]:
        """See `Launcher`."""
        scratch = tempfile.mkdtemp(prefix="optiq-sandbox-")
        try:
            inside = python_words(self._interpreter, program, policy)
            words = ("/usr/bin/sandbox-exec", "-p", profile(self._interpreter, policy, scratch), *inside)
            yield Launch(words, environment(scratch), (program,), scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def profile(interpreter: str, policy: Policy, scratch: str) -> str:
    """The rules, in Seatbelt's own Scheme; of several that fit, the last one counts."""
    readable = [*_SYSTEM, *map(str, interpreter_folders(interpreter)), *map(str, policy.readable)]
    writable = [str(Path(scratch).resolve()), *map(str, policy.writable)]
    return "\n".join(
        [
            "(version 1)",
            "(deny default)",
            "(allow process-fork)",
            "(allow sysctl-read)",
            "(allow signal (target same-sandbox))",
            f"(allow process-exec {_paths(readable)})",
            '(allow file-read-metadata)\n(allow file-read* (literal "/"))',
            f"(allow file-read* file-map-executable {_paths(readable)})",
            f"(allow file-read* file-write* {_paths(writable)})",
            '(allow file-read* file-write-data (literal "/dev/null") (literal "/dev/zero") (literal "/dev/urandom"))',
            "(deny network*)",
        ]
    )


def _paths(paths: list[str]) -> str:
    quoted = (path.replace("\\", "\\\\").replace('"', '\\"') for path in paths)
    return " ".join(f'(subpath "{path}")' for path in quoted)

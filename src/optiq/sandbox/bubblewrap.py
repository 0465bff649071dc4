"""Linux with bubblewrap: namespaces of its own for everything, a file tree of what the policy names, a seccomp filter."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optiq.sandbox import seccomp
from optiq.sandbox.launch import NOBODY, Launch, environment, held, interpreter_folders, python_words, system_folders
from optiq.sandbox.policy import Policy

_SCRATCH = "/tmp"


class Bubblewrap:
    """See https://github.com/containers/bubblewrap."""

    name = "bubblewrap"

    def __init__(self, interpreter: str) -> None:
        self._interpreter = interpreter

    @staticmethod
    def missing() -> str | None:
        """Why there is no such launcher here, or None."""
        if shutil.which("bwrap") is None:
            return "bubblewrap is not installed (bwrap)"
        return None if seccomp.supported() else "no seccomp filter for this processor"

    @contextmanager
    def launch(self, program: int, policy: Policy) -> Iterator[Launch]:
        """See `Launcher`."""
        with held(seccomp.program()) as rules, tempfile.TemporaryFile() as told:
            bwrap = shutil.which("bwrap") or "bwrap"
            words = [
                bwrap,
                *_APART,
                "--seccomp",
                str(rules),
                "--info-fd",
                str(told.fileno()),
                *_tree(self._interpreter, policy),
            ]
            inside = python_words(self._interpreter, program, policy)
            for name, value in environment(_SCRATCH).items():
                words += ["--setenv", name, value]
            descriptors = (program, rules, told.fileno())
            yield Launch((*words, "--", *inside), {}, descriptors, first=lambda command: _told(told.fileno()))


def _told(descriptor: int) -> int | None:
    """The process that bubblewrap told of, if it came so far; it writes in pieces."""
    try:
        return int(json.loads(os.pread(descriptor, 4096, 0))["child-pid"])
    except ValueError:
        return None


_APART = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv"),
    *("--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"),
)


def _tree(interpreter: str, policy: Policy) -> list[str]:
    """The file tree: later words lie over earlier ones."""
    words: list[str] = []
    for path in system_folders():
        words += ["--symlink", os.readlink(path), str(path)] if path.is_symlink() else ["--ro-bind", str(path), str(path)]
    for path in (Path("/etc/ld.so.cache"), Path("/etc/alternatives"), Path("/etc/localtime"), Path("/etc/mime.types")):
        words += ["--ro-bind-try", str(path), str(path)]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(policy.file_bytes), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    words += ["--size", str(policy.file_bytes), "--tmpfs", _SCRATCH, "--chdir", _SCRATCH]
    for path in (*interpreter_folders(interpreter), *policy.readable):
        words += ["--ro-bind", str(path), str(path)]
    for path in policy.writable:
        words += ["--bind", str(path), str(path)]
    return [*words, "--remount-ro", "/"]

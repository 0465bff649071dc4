"""Linux without bubblewrap: user namespaces, Landlock and seccomp, set up by `stage.py`."""

from __future__ import annotations

import ctypes
import marshal
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optiq.sandbox import seccomp
from optiq.sandbox.launch import (
    NOBODY,
    Launch,
    children,
    environment,
    held,
    interpreter_folders,
    python_words,
    source,
    system_folders,
)
from optiq.sandbox.policy import Policy

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types")
_LANDLOCK_CREATE_RULESET, _VERSION = 444, 1
_MARSHAL = 2  # a version that all Pythons read


class Namespaces:
    """The system's own means alone."""

    name = "namespaces"

    def __init__(self, interpreter: str) -> None:
        self._interpreter = interpreter

    @staticmethod
    def missing() -> str | None:
        """Why there is no such launcher here, or None."""
        if platform.system() != "Linux" or not seccomp.supported():
            return "no seccomp filter for this system"
        call = ctypes.CDLL(None, use_errno=True).syscall
        if call(ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION)) < 1:
            return "the kernel has no Landlock"
        return None

    @contextmanager
    def launch(self, program: int, policy: Policy) -> Iterator[Launch]:
        """See `Launcher`."""
        scratch = tempfile.mkdtemp(prefix="optiq-sandbox-")
        try:
            if os.geteuid() == 0:
                os.chown(scratch, NOBODY, NOBODY)
            with held(seccomp.program()) as rules:
                readable = (*system_folders(), *interpreter_folders(self._interpreter), *policy.readable)
                wanted = {
                    "caller": os.getpid(),
                    "scratch": scratch,
                    "size": policy.file_bytes,
                    "readable": [str(path) for path in (*readable, *filter(Path.exists, map(Path, _FILES)))],
                    "devices": [path for path in _DEVICES if Path(path).exists()],
                    "writable": [str(path) for path in policy.writable],
                    "filter": rules,
                    "command": python_words(self._interpreter, program, policy),
                    "environment": environment(scratch),
                }
                argv = (self._interpreter, "-I", "-S", "-B", "-c", source("stage.py"), marshal.dumps(wanted, _MARSHAL).hex())
                yield Launch(argv, environment(scratch), (program, rules), first=lambda stage: next(children(stage), None))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

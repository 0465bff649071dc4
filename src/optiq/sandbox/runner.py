"""The way to run a program here: the first launcher that works, or none at all."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from optiq.errors import InputError, ResourceError
from optiq.sandbox.bubblewrap import Bubblewrap
from optiq.sandbox.launch import Launch, Launcher, environment, held, interpreters, python_words
from optiq.sandbox.namespaces import Namespaces
from optiq.sandbox.policy import Outcome, Policy
from optiq.sandbox.seatbelt import Seatbelt
from optiq.sandbox.supervise import supervise

LAUNCHERS = (Bubblewrap, Namespaces, Seatbelt)
# On a machine that is not kept apart, an address where nobody listens refuses the connection: another error.
_PROBE = """
import socket
try:
    socket.create_connection(("127.0.0.1", 9), 1)
except PermissionError:
    print("apart")
"""
_PROBE_POLICY = Policy(seconds=20)


class Runner:
    """Runs programs by one launcher; may be used by several threads.

    Attributes:
        name: "bubblewrap", "namespaces", "seatbelt", or "none" where a person has done without.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.name = launcher.name
        self._launcher = launcher

    def run(
        self, program: str, policy: Policy | None = None, *, stdin: str = "", cancelled: threading.Event | None = None
    ) -> Outcome:
        """Run a Python program to its end or to a limit.

        Args:
            program: the source text.
            policy: its limits; the defaults of `Policy` where None.
            stdin: what it can read.
            cancelled: set by another thread to end the run soon.

        Raises:
            InputError: for text that is not Unicode.
            OSError: if the launcher cannot be started.
        """
        policy = policy or Policy()
        with (
            held(_encoded("program", program)) as file,
            held(_encoded("stdin", stdin)) as given,
            self._launcher.launch(file, policy) as launch,
        ):
            return supervise(launch, policy, given, cancelled)


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds half of a surrogate pair at character {error.start}; give valid Unicode") from error


class Bare:
    """No sandbox: limits, a clean environment and an empty folder, but the caller's own rights."""

    name = "none"

    def __init__(self, interpreter: str) -> None:
        self._interpreter = interpreter

    @contextmanager
    def launch(self, program: int, policy: Policy) -> Iterator[Launch]:
        """See `Launcher`."""
        scratch = tempfile.mkdtemp(prefix="optiq-unsafe-")
        try:
            words = python_words(self._interpreter, program, policy)
            yield Launch(words, environment(scratch), (program,), scratch, as_nobody=False)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def runner(*, unsafe: bool = False) -> Runner:
    """The first launcher that runs a program apart on this machine.

    Args:
        unsafe: do without where a person has said so; then nothing keeps a program from the caller's files.

    Raises:
        ResourceError: where no launcher works; the line says why for each, and what to do.
    """
    if unsafe:
        return Runner(Bare(next(interpreters())))
    reasons = []
    for kind in LAUNCHERS:
        reason = kind.missing()
        if reason is None:
            found, reason = _working(kind)
            if found is not None:
                return found
        reasons.append(f"{kind.name}: {reason}")
    raise ResourceError(
        f"no sandbox works here ({'; '.join(reasons)}), so no program is run; install bubblewrap or allow user namespaces, "
        "or pass --unsafe-no-sandbox to run programs with your own rights"
    )


def _working(kind: type[Bubblewrap] | type[Namespaces] | type[Seatbelt]) -> tuple[Runner | None, str]:
    """A runner whose first program ran apart, or why none did: an interpreter may lie where the sandbox's user cannot read."""
    reason = "no Python to run"
    for interpreter in interpreters():
        found = Runner(kind(interpreter))
        try:
            outcome = found.run(_PROBE, _PROBE_POLICY)
        except OSError as error:
            reason = str(error)
            continue
        if outcome.code == 0 and outcome.stdout == "apart\n":
            return found, ""
        lines = outcome.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"a program ended with {outcome.code} ({outcome.stopped})"
    return None, reason

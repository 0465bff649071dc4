"""The exception tree: every failure that a user can cause or mend.

    OptiqError            one clear line: what, the actual value, what was expected, what to do
    ├── InputError        an argument, a path, a name or a budget that cannot be met
    ├── ModelError        a checkpoint that is broken or that no code here understands
    ├── ResourceError     disk, memory, network or device that is missing or full
    └── FormatError       a file of ours (or of a peer) that cannot be read or has another version

The command line turns any of them into one line and exit code 2. Everything else is a bug and exits with 1.
This module imports nothing of ours.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_INTERRUPT = 130
EXIT_TERMINATED = 143


class OptiqError(Exception):
    """Base of every error with a message that is meant for the user."""

    @property
    def kind(self) -> str:
        """The class name in the form that JSON output carries, for instance ``input``."""
        return type(self).__name__.removesuffix("Error").lower()


class InputError(OptiqError):
    """The request cannot be met as it was given."""


class ModelError(OptiqError):
    """The model's files are missing, damaged or of an unknown architecture."""


class ResourceError(OptiqError):
    """The machine lacks something: disk space, memory, network, a device."""


class FormatError(OptiqError):
    """A structured file is unreadable or carries a schema that this version does not know."""

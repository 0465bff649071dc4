"""The first lines inside of a sandbox: limits of the process, then the program. Runs as text, knows nothing of ours.

Arguments: the file descriptor of the program, then the limits cpu seconds, address space, processes, file size. Hard limits, so
that the program cannot raise them again.
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False  # what is imported here is waited for by every program
if TYPE_CHECKING:
    import types


class Source:
    """Gives the program's text to tracebacks and to `inspect`, as loaders of modules do."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, name: str) -> str:
        """See PEP 302."""
        return self._text


def tell(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """An error that nobody caught, from the program's first line on."""
    import traceback

    while trace is not None and trace.tb_frame.f_code.co_filename != "program.py":
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def main() -> None:
    """Set the limits and become the program."""
    descriptor, cpu, memory, processes, file = map(int, sys.argv[1:6])
    program = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
    os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    if sys.platform == "linux":  # macOS reserves more address space than it has memory
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    name = "program.py"
    module = type(sys)("__main__")
    module.__dict__.update(__file__=name, __loader__=Source(program))
    sys.modules["__main__"], sys.argv, sys.excepthook = module, [name], tell
    exec(compile(program, name, "exec", dont_inherit=True), module.__dict__)


main()

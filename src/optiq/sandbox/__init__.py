"""Programs of strangers, run apart: answers of models to programming tasks, and the Python of agents.

    runner().run("print(6 * 7)", Policy(seconds=5)).stdout

**Covered.** A program sees the interpreter, the system's libraries and what its policy names, read-only; an empty scratch folder
of bounded size that is gone at the end; none of the caller's environment, files, processes or sockets; no network, not even the
machine's own. Time, processor time, memory, processes, file sizes and output are bounded, and everything that it started is
killed when it ends. Where the caller is root, programs run as nobody. No limit can be widened from inside.

**Fails closed.** `runner` runs a program before it says that a launcher works; where none does there is no execution, unless a
person asks for that with `unsafe`.

**Not covered.** Memory of the kernel itself (pipes, and names of files where bubblewrap is the means). Faults of the kernel and
of the processor (a virtual machine is the answer to these); how much of a core is used within the time; the names of files that
exist, where Landlock is the means (their content is covered); on macOS the total of memory and the number of processes of this
user; contents of what `readable` and `writable` name.

Linux: bubblewrap, else user namespaces, Landlock and seccomp by the system's own calls. macOS: Seatbelt.
"""

from optiq.sandbox.policy import Outcome, Policy
from optiq.sandbox.runner import Runner, runner

__all__ = ["Outcome", "Policy", "Runner", "runner"]

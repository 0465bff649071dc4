"""What programs must not reach, on every launcher at hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optiq.sandbox import Outcome, Policy, Runner
from optiq.sandbox.launch import NOBODY
from optiq.sandbox.runner import LAUNCHERS, _working

SHORT = Policy(seconds=20, cpu_seconds=5)
FOUND = {kind.name: (kind, kind.missing()) for kind in LAUNCHERS}


@pytest.fixture(scope="module", params=FOUND)
def runner(request: pytest.FixtureRequest) -> Runner:
    kind, reason = FOUND[request.param]
    if reason is None:
        found, reason = _working(kind)
        if found is not None:
            return found
    pytest.skip(f"{request.param} does not work here: {reason}")


def run(runner: Runner, program: str, policy: Policy = SHORT) -> Outcome:
    return runner.run(textwrap.dedent(program), policy)


def refused(outcome: Outcome, *errors: str) -> None:
    """The program ended by one of these exceptions, which it did not cause itself."""
    assert outcome.code == 1, outcome
    assert outcome.stderr.splitlines()[-1].startswith(errors), outcome.stderr


def test_a_program_runs(runner: Runner) -> None:
    found = runner.run("import sys\nprint(sys.stdin.read()[::-1])\nprint('so', file=sys.stderr)\nsys.exit(3)", stdin="olleh")
    assert (found.code, found.stdout, found.stderr, found.stopped) == (3, "hello\n", "so\n", None)


def test_an_error_shows_the_programs_own_lines(runner: Runner) -> None:
    found = run(runner, "def f():\n    return 1 / 0\nf()")
    assert found.code == 1 and found.stderr.splitlines()[1:3] == ['  File "program.py", line 3, in <module>', "    f()"]
    assert "boot" not in found.stderr and "<string>" not in found.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read and write; pytest's own are their user's alone."""
    with tempfile.TemporaryDirectory(prefix="optiq-open-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture
def secret() -> Iterator[Path]:
    path = Path.home() / f".optiq-test-{os.getpid()}"
    path.write_text("secret")
    path.chmod(0o644)
    yield path
    path.unlink()


def test_a_program_can_read_its_own_text(runner: Runner) -> None:
    program = """
        import inspect, traceback
        def f():
            return 1 / 0
        print(inspect.getsource(f).splitlines()[1].strip())
        try:
            f()
        except ZeroDivisionError:
            print(traceback.format_exc().splitlines()[-3].strip())
    """
    assert run(runner, program).stdout == "return 1 / 0\nreturn 1 / 0\n"


def test_programs_inherit_no_settings_of_the_starter(runner: Runner) -> None:
    assert run(runner, "class A:\n    x: int\nprint(A.__annotations__['x'] is int)").stdout == "True\n"


@pytest.mark.parametrize("code", [127, 200, 255])
def test_exit_codes_are_not_taken_for_signals(runner: Runner, code: int) -> None:
    assert run(runner, f"import os\nos._exit({code})").code == code


def test_signals_are_told(runner: Runner) -> None:
    assert run(runner, "import os\nos.kill(os.getpid(), 11)").code == -11


def test_a_program_holds_its_three_files_alone(runner: Runner) -> None:
    program = """
        import os
        for descriptor in range(256):
            try:
                os.fstat(descriptor)
                print(descriptor)
            except OSError:
                pass
    """
    assert run(runner, program).stdout.split() == ["0", "1", "2"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
def test_the_input_cannot_be_written(runner: Runner) -> None:
    refused(run(runner, "import os\nos.write(0, b'x')"), "OSError", "PermissionError")
    refused(run(runner, "import os\nos.ftruncate(0, 1 << 20)"), "OSError", "PermissionError")


def test_input_and_output_of_any_size_and_kind(runner: Runner) -> None:
    text = "ä0123456789" * 200_000
    policy = Policy(seconds=20, output_bytes=8 << 20)
    assert runner.run("import sys\nsys.stdout.write(sys.stdin.read())", policy, stdin=text).stdout == text
    assert run(runner, "import sys\nsys.stdout.buffer.write(bytes(range(256)))").stdout.startswith("\0\1\2")
    assert run(runner, "import sys\nsys.stdin.read(10)\nprint('so')").stdout == "so\n"


def test_output_is_cut_at_the_end_as_well(runner: Runner) -> None:
    found = run(runner, "import os\nos.write(1, b'x' * 30_000)\nos._exit(0)", Policy(seconds=20, output_bytes=20_000))
    assert (found.stopped, len(found.stdout)) == ("output", 20_000)


def test_closed_pipes_end_neither_the_program_nor_its_watch(runner: Runner) -> None:
    closes = "import os, time\nos.close(1)\nos.close(2)\ntime.sleep({})\nos._exit(7)"
    assert run(runner, closes.format(0.3)).code == 7
    assert run(runner, closes.format(60), Policy(seconds=1)).stopped == "time"


def test_programs_at_once_do_not_meet(runner: Runner) -> None:
    def one(number: int) -> list[Outcome]:
        program = f"import os, sys\nopen('{number}', 'w').close()\nprint(*os.listdir(), sys.stdin.read())"
        return [runner.run(program, SHORT, stdin=f"given {number}") for _ in range(2)]

    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(one, range(8))):
            assert [(run.code, run.stdout) for run in found] == [(0, f"{number} given {number}\n")] * 2, found


def test_another_thread_can_end_a_run(runner: Runner) -> None:
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    found = runner.run("import time\ntime.sleep(60)", Policy(seconds=60), cancelled=cancelled)
    assert (found.stopped, found.code) == ("cancelled", None) and found.seconds < 20


def test_home_cannot_be_read(runner: Runner, secret: Path) -> None:
    refused(run(runner, f"print(open({str(secret)!r}).read())"), "FileNotFoundError", "PermissionError")
    refused(run(runner, f"import os\nprint(os.listdir({str(secret.parent)!r}))"), "FileNotFoundError", "PermissionError")


def test_a_link_out_of_the_scratch_folder_leads_nowhere(runner: Runner, secret: Path) -> None:
    program = f"""
        import os
        os.symlink({str(secret)!r}, "link")
        os.symlink("/", "root")
        for path in ("link", "root{secret}"):
            try:
                print(open(path).read())
            except OSError:
                print("nothing")
        try:
            os.link({str(secret)!r}, "hard")
        except OSError:
            print("nothing")
    """
    assert run(runner, program).stdout.split() == ["nothing"] * 3


def test_files_of_others_cannot_be_written(runner: Runner, open_folder: Path) -> None:
    program = """
        import os, sys
        for path in (os.__file__, "/usr/lib/new", sys.executable, "/etc/passwd", FOLDER + "/new"):
            try:
                open(path, "a").write("x")
                print("wrote", path)
            except OSError:
                pass
            try:
                os.unlink(path)
                print("removed", path)
            except OSError:
                pass
    """
    found = run(runner, program.replace("FOLDER", repr(str(open_folder))))
    assert found.code == 0 and found.stdout == "" and list(open_folder.iterdir()) == []


def test_modes_and_times_of_others_cannot_be_changed(runner: Runner, open_folder: Path) -> None:
    """Where the program's user owns the file."""
    file = open_folder / "file"
    file.write_text("text")
    file.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(file, NOBODY, NOBODY)
    before = file.stat()
    program = """
        import os
        for change in (lambda: os.chmod(FILE, 0o777), lambda: os.utime(FILE, (0, 0)), lambda: os.setxattr(FILE, "user.a", b"b"),
                       lambda: os.truncate(FILE, 0)):
            try:
                change()
                print("changed")
            except OSError:
                pass
    """
    for policy in (SHORT, Policy(seconds=20, readable=(open_folder,))):
        assert run(runner, program.replace("FILE", repr(str(file))), policy).stdout == ""
        after = file.stat()
        assert (after.st_mode, after.st_mtime, after.st_size) == (before.st_mode, before.st_mtime, before.st_size)


def test_only_named_folders_are_seen(runner: Runner, open_folder: Path) -> None:
    given, other = open_folder / "given", open_folder / "other"
    for folder in (given, other):
        folder.mkdir()
        (folder / "file").write_text("text")
    policy = Policy(seconds=20, readable=(given,))
    assert run(runner, f"print(open({str(given / 'file')!r}).read())", policy).stdout == "text\n"
    refused(run(runner, f"open({str(given / 'file')!r}, 'a')", policy), "OSError", "PermissionError")
    refused(run(runner, f"open({str(other / 'file')!r})", policy), "FileNotFoundError", "PermissionError")


def test_a_writable_folder_keeps_what_was_written(runner: Runner, open_folder: Path) -> None:
    found = run(runner, f"open({str(open_folder / 'new')!r}, 'w').write('kept')", Policy(seconds=20, writable=(open_folder,)))
    assert found.code == 0 and (open_folder / "new").read_text() == "kept"


def test_environments_cannot_be_read(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIQ_TEST_KEY", "open-sesame")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        program = """
            import glob, os
            print(dict(os.environ))
            for path in ("/proc/PID/environ", *glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline")):
                try:
                    print(open(path).read())
                except OSError as error:
                    pass
        """
        found = run(runner, program.replace("PID", str(other.pid)))
        other.communicate(b"\n")
    assert found.code == 0 and "open-sesame" not in found.stdout and "pytest" not in found.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_sockets_of_this_machine_cannot_be_reached(runner: Runner, open_folder: Path) -> None:
    places = [("AF_INET", ("127.0.0.1", 0)), ("AF_INET6", ("::1", 0)), ("AF_UNIX", f"\0optiq-{os.getpid()}")]
    places.append(("AF_UNIX", str(open_folder / "socket")))
    listening, targets = [], []
    for family, address in places:
        server = socket.socket(getattr(socket, family))
        try:
            server.bind(address)
        except OSError:  # a machine without IPv6
            continue
        server.listen()
        listening.append(server)
        targets.append((family, server.getsockname()[:2] if family != "AF_UNIX" else address))
        if address == places[-1][1]:
            os.chmod(address, 0o777)
    program = f"""
        import socket
        for family, address in {targets!r}:
            try:
                socket.socket(getattr(socket, family)).connect(address)
                print("reached", address)
            except OSError:
                print("out of reach")
    """
    found = run(runner, program, Policy(seconds=20, readable=(open_folder,)))
    assert found.stdout.split("\n")[:-1] == ["out of reach"] * len(targets), found
    for server in listening:
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        server.close()


def test_a_fork_bomb_ends(runner: Runner) -> None:
    program = """
        import os, threading, time
        started = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                started += 1
        except OSError:
            print(started)
    """
    found = run(runner, program)
    assert found.code == 0 and int(found.stdout) < SHORT.processes and found.seconds < 15
    runs_away = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    found = run(runner, runs_away, Policy(seconds=2, cpu_seconds=1))
    assert found.stopped in ("time", "cpu")


def test_memory_is_bounded(runner: Runner) -> None:
    refused(run(runner, "bytearray(10 * 10**9)"), "MemoryError")
    together = """
        import os, time
        for _ in range(6):
            if os.fork() == 0:
                held = b"x" * (300 << 20)
                time.sleep(60)
        time.sleep(60)
    """
    assert run(runner, together, Policy(seconds=30, memory_bytes=600 << 20)).stopped == "memory"


def test_limits_cannot_be_raised(runner: Runner) -> None:
    program = """
        import resource
        for name in ("RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE"):
            try:
                resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                print("raised", name)
            except (ValueError, OSError):
                pass
    """
    found = run(runner, program)
    assert (found.code, found.stdout) == (0, ""), found


@pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")
def test_memory_that_no_process_is_charged_for_cannot_be_had(runner: Runner) -> None:
    refused(run(runner, "import os\nos.memfd_create('x')"), "PermissionError")
    program = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.shmget(0, 1 << 20, 0o1600), libc.msgget(0, 0o1600), libc.semget(0, 1, 0o1600))
    """
    assert run(runner, program).stdout == "-1 -1 -1\n"


def test_files_are_bounded(runner: Runner) -> None:
    policy = Policy(seconds=20, file_bytes=4 << 20)
    refused(run(runner, "open('big', 'wb').write(bytes(5 << 20))", policy), "OSError")
    many = "for i in range(9):\n    open(f'{i}', 'wb').write(bytes(1 << 20))"
    refused(run(runner, many, policy), "OSError: [Errno 28]")
    common = "for i in range(9):\n    open(f'/dev/shm/{i}', 'wb').write(bytes(1 << 20))"
    refused(run(runner, common, policy), "OSError", "PermissionError")


def test_output_without_end_is_cut(runner: Runner) -> None:
    found = run(runner, "import sys\nwhile True:\n    sys.stdout.write('x' * 65536)", Policy(seconds=20, output_bytes=100_000))
    assert found.stopped == "output" and len(found.stdout) == 100_000
    found = run(runner, "import sys\nwhile True:\n    sys.stderr.write('x' * 65536)", Policy(seconds=20, output_bytes=100_000))
    assert found.stopped == "output" and len(found.stderr) == 100_000


def test_time_is_bounded(runner: Runner) -> None:
    assert run(runner, "import time\ntime.sleep(60)", Policy(seconds=1)).stopped == "time"
    assert run(runner, "while True: pass", Policy(seconds=30, cpu_seconds=1)).stopped == "cpu"
    deaf = "import signal\nfor s in (15, 2, 1, 24):\n    signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
    found = run(runner, deaf, Policy(seconds=10, cpu_seconds=1))
    assert found.stopped or found.code == -9, found


@pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")
def test_system_calls_that_reach_out_are_refused(runner: Runner) -> None:
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        def call(name, *arguments):
            print(name, getattr(libc, name)(*arguments), ctypes.get_errno())
        call("ptrace", 16, os.getppid(), None, None)
        call("unshare", 0x10000000)
        call("mount", b"none", b"/tmp", b"tmpfs", 0, None)
        call("umount2", b"/proc", 2)
        call("chroot", b"/tmp")
        call("process_vm_readv", os.getppid(), None, 0, None, 0, 0)
        call("syscall", 425, 8, None)
    """
    found = run(runner, program)
    assert found.code == 0, found
    assert [line.split()[1:] for line in found.stdout.splitlines()] == [["-1", "1"]] * 7, found.stdout


def test_processes_outside_cannot_be_signalled(runner: Runner) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        found = run(runner, f"import os\nos.kill({other.pid}, 9)")
        assert other.poll() is None
        other.communicate(b"\n")
    refused(found, "ProcessLookupError", "PermissionError")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("stay", ["", "time.sleep(60)"])
def test_nobody_survives_the_end(runner: Runner, stay: str) -> None:
    mark = f"survivor-{os.getpid()}-{time.time_ns()}"
    program = f"""
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for descriptor in range(3):
                    os.close(descriptor)
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(100)", {mark!r}])
            os._exit(0)
        time.sleep(0.5)
        {stay}
    """
    started = run(runner, program, Policy(seconds=2))
    assert started.stopped == ("time" if stay else None)
    assert _marked(mark) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_programs_end_with_their_caller(runner: Runner, open_folder: Path) -> None:
    mark = f"orphan-{os.getpid()}-{time.time_ns()}"
    program = f"import os, sys, time\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(100)', {mark!r}])"
    caller = f"""
        from optiq.sandbox import Policy, Runner, runner
        from optiq.sandbox.runner import LAUNCHERS, _working
        found = next(_working(kind)[0] for kind in LAUNCHERS if kind.name == {runner.name!r})
        found.run({program!r}, Policy(seconds=100))
    """
    environment = os.environ | {"TMPDIR": str(open_folder)}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(caller)], env=environment) as process:
        _until(lambda: bool(_marked(mark)))
        process.kill()
    _until(lambda: not _marked(mark))


def _until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _marked(mark: str) -> list[int]:
    """Processes of a sandbox with a word in their command line: an argument of its own, as no caller has it."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if f"\0{mark}\0" in _text(path)]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_nothing_is_left_behind(runner: Runner, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    assert run(runner, "open('left', 'w').write('x')").code == 0
    assert run(runner, "import os\nprint(os.listdir('.'))").stdout == "[]\n"
    assert list(open_folder.iterdir()) == []

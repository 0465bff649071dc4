"""From outside into namespaces, Landlock and seccomp, then the program. Runs as text, knows nothing of ours.

Argument: in hexadecimal digits, by `marshal`, a dictionary with `caller` (the process whose end ends this), `scratch` and `size`
(a folder and the bytes of the file system that is mounted there), `readable`, `devices` and `writable` (paths), `filter` (the
descriptor of a seccomp filter), `command` and `environment`.

Sources: man 7 user_namespaces, pid_namespaces, landlock; man 2 mount_setattr; linux/landlock.h
"""

from __future__ import annotations

import ctypes
import marshal
import os
import select
import struct
import sys

TYPE_CHECKING = False  # what is imported here is waited for by every program: no typing, json or signal
if TYPE_CHECKING:
    from typing import Any

_NEW = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mount, UTS, IPC, user, PID, network
_NOSUID_NODEV, _PRIVATE, _BIND = 2 | 4, (1 << 14) | (1 << 18), (1 << 12) | (1 << 14)
_MOUNT_SETATTR, _HERE, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_BYTES_PER_FILE = 1024  # of the scratch file system, at least: names and empty files take memory that no size counts
_PDEATHSIG, _NO_NEW_PRIVS, _SECCOMP, _FILTER, _SIGKILL = 1, 38, 22, 2, 9
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a C function, or its error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def system_call(number: int, *arguments: Any) -> int:
    """A system call by its number."""
    return checked(_libc.syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def control(*arguments: int) -> None:
    """prctl."""
    checked(_libc.prctl(*(ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:5])), f"prctl {arguments[0]}")


def set_mount(path: bytes, flags: int, attributes: bytes) -> None:
    """mount_setattr."""
    size = ctypes.c_size_t(len(attributes))
    system_call(_MOUNT_SETATTR, ctypes.c_int(_HERE), path, ctypes.c_uint(flags), attributes, size)


def leave(wanted: dict[str, Any]) -> None:
    """Own namespaces with one user, where the scratch folder is a file system of its own and what is not writable is read-only.

    Landlock knows no right to change modes, owners or times, so that it is the mounts that keep these.
    """
    user, group = os.geteuid(), os.getegid()
    checked(_libc.unshare(_NEW), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None), "mount /")
    writable = [path.encode() for path in wanted["writable"]]
    for path in writable:
        checked(_libc.mount(path, path, None, ctypes.c_ulong(_BIND), None), "mount of a writable folder")
    set_mount(b"/", _RECURSIVE, struct.pack("4Q", _READ_ONLY, 0, 0, 0))
    for path in writable:
        set_mount(path, 0, struct.pack("4Q", 0, _READ_ONLY, 0, 0))
    options = f"size={wanted['size']},nr_inodes={wanted['size'] // _BYTES_PER_FILE + 64},mode=0700".encode()
    scratch = wanted["scratch"].encode()
    checked(_libc.mount(b"tmpfs", scratch, b"tmpfs", ctypes.c_ulong(_NOSUID_NODEV), options), "mount of the scratch folder")


def restrict(wanted: dict[str, Any]) -> None:
    """Landlock: what is not named cannot be opened, made, changed or run."""
    version = system_call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    every = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    handled = struct.pack("QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = system_call(_CREATE_RULESET, handled, ctypes.c_size_t(size), ctypes.c_uint(0))
    rights = [(path, _EXECUTE | _READ | _LIST) for path in wanted["readable"]]
    rights += [(path, _READ | _WRITE) for path in wanted["devices"]]
    rights += [(path, every & ~_IOCTL) for path in (*wanted["writable"], wanted["scratch"])]
    for path, allowed in rights:
        if not os.path.isdir(path):
            allowed &= _OF_FILES
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        system_call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), struct.pack("=Qi", allowed & every, place), ctypes.c_uint(0))
        os.close(place)
    system_call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)


def filter_calls(descriptor: int) -> None:
    """The seccomp filter in an open file, for this process and all that it starts."""
    text = os.pread(descriptor, 1 << 16, 0)
    os.close(descriptor)
    held = ctypes.create_string_buffer(text, len(text))
    program = struct.pack("HxxxxxxQ", len(text) // 8, ctypes.addressof(held))
    where = ctypes.create_string_buffer(program, len(program))
    control(_SECCOMP, _FILTER, ctypes.addressof(where))


def waited(child: int) -> int:
    """A child's end as an exit status, as shells tell it; orphans are reaped on the way."""
    while True:
        found, status = os.wait()
        if found == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> None:
    """Three processes: this one outside, the first inside, which reaps, and the program."""
    wanted = marshal.loads(bytes.fromhex(sys.argv[1]))
    control(_PDEATHSIG, _SIGKILL)
    if os.getppid() != wanted["caller"]:
        return  # it ended before it could take us along
    leave(wanted)
    alive, held = os.pipe()  # the second end is this process's alone
    first = os.fork()
    if first:
        os._exit(waited(first))
    os.close(held)
    control(_PDEATHSIG, _SIGKILL)
    if select.select([alive], [], [], 0)[0]:
        return
    os.setsid()
    program = os.fork()
    if program:
        os._exit(waited(program))
    os.chdir(wanted["scratch"])
    control(_NO_NEW_PRIVS, 1)
    restrict(wanted)
    filter_calls(wanted["filter"])
    os.execve(wanted["command"][0], wanted["command"], wanted["environment"])


main()

"""Files that are whole or absent: atomic writes, versioned JSON, hashes, and directories that appear in one step.

Everything is written under a temporary name beside its target (`.<name>.partial-…`), flushed to the disk and renamed.
A writer holds a lock on its temporary, so that leftovers of killed runs are told from work in progress and swept.
Knows nothing of models. GB = 1e9 bytes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from optiq.errors import FormatError, InputError, ResourceError

_UMASK = os.umask(0o077)  # the only way to read it is to set it; once, at import, before there are threads
os.umask(_UMASK)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as a user types it: ``~`` and ``~name`` stand for home directories.

    Raises:
        InputError: it begins with ``~`` and a name that this machine has no home directory for.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        first = Path(text).parts[0]
        raise InputError(f"{text}: no home directory for {first!r}; write the whole path, or ./{text}") from None


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` in one visible step, making parent folders.

    Raises:
        ResourceError: the disk is full.
        InputError: the place cannot be written.
    """
    with writing(path, expected_bytes=len(data)) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` in one visible step.

    Halves of surrogate pairs, which UTF-8 cannot carry, become escapes (``\\udcff``): names of files and foreign JSON hold them.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike[str], obj: object, indent: int | None = 2) -> None:
    """Write ``obj`` as JSON (keys in their own order, no NaN) to ``path`` in one visible step."""
    write_text(path, json.dumps(obj, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def writing(path: str | os.PathLike[str], expected_bytes: int = 0) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``path`` when the block ends well and vanishes when it does not.

    Args:
        path: the target; parent folders are made.
        expected_bytes: what the whole file will take, for the message if the disk is full.
    """
    target = Path(path)
    with _disk_errors(target, expected_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        handle, name = _locked_temporary(target, directory=False)
    temporary = Path(name)
    try:
        with _disk_errors(target, expected_bytes), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # mkstemp makes private files
            os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def building(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling directory that becomes ``path`` when the block ends well and is removed otherwise.

    Args:
        path: the directory to make.
        overwrite: replace an existing directory (in one exchange where the system can); else it is refused.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is off, or the place cannot be written.
        ResourceError: the disk is full.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already; choose another name or ask to overwrite it")
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        handle, name = _locked_temporary(target, directory=True)
    temporary = Path(name)
    try:
        with _disk_errors(target):
            yield temporary
            _sync_tree(temporary)
            os.chmod(temporary, 0o777 & ~_UMASK)
            _put_in_place(temporary, target, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Delete a directory: it vanishes from its name in one step, then its space is freed.

    Raises:
        InputError: it may not be written.
    """
    target = Path(path)
    with _disk_errors(target):
        handle, name = _locked_temporary(target, directory=True)
        try:
            os.rename(target, Path(name, "old"))
            _sync_directory(target.parent)
        finally:
            shutil.rmtree(name, ignore_errors=True)
            os.close(handle)


def sweep(path: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporaries that dead writers of ``path`` left beside it; those in use stay."""
    target = Path(path)
    removed = []
    for leftover in sorted(target.parent.glob(f".{_escaped(target.name)}.partial-*")):
        try:
            handle = os.open(leftover, os.O_RDONLY)
        except OSError:
            continue  # gone in the meantime, or not ours to open
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its writer lives
        else:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
            removed.append(leftover)
        finally:
            os.close(handle)
    return removed


def lock(descriptor: int) -> bool:
    """Lock an open file or directory for this process until it is closed: False where another holder has it.

    A file system that knows no locks lets everybody in.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def read_json(path: str | os.PathLike[str], what: str = "file", schema: int | None = 1) -> dict[str, Any]:
    """Read a JSON object and check its ``schema`` field.

    Args:
        path: the file.
        what: what it is, for messages, for instance ``"plan"``.
        schema: the version that the caller understands; None for foreign files that carry none.

    Raises:
        InputError: no such file.
        FormatError: unreadable, not an object, or another version.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"no {what} at {path}") from None
    except OSError as error:
        raise FormatError(f"cannot read the {what} {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8 and bad JSON
        raise FormatError(f"the {what} {path} is not valid JSON ({error}); delete it and run again") from None
    if not isinstance(data, dict):
        raise FormatError(f"the {what} {path} holds a JSON {type(data).__name__}, expected an object")
    if schema is not None and data.get("schema") != schema:
        found = data.get("schema", "none")
        raise FormatError(f"the {what} {path} has schema {found}, expected {schema}; make it again with this version")
    return data


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(obj: object) -> str:
    """The SHA-256 of an object's canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that this user may still write where ``path`` is or will be."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def need_free(path: str | os.PathLike[str], n: int, what: str) -> None:
    """Refuse work that the disk cannot hold.

    Args:
        path: where the bytes will go.
        n: how many bytes are needed.
        what: what needs them, for the message.

    Raises:
        ResourceError: fewer than ``n`` bytes are free.
    """
    free = free_bytes(path)
    if free < n:
        raise ResourceError(f"{what} needs {size_text(n)} at {path}, free: {size_text(free)}; make room or choose another place")


def size_text(n: float) -> str:
    """A size for people, in decimal units: ``1.84 GB``, ``20.7 MB``, ``512 B``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}" if n < 999.5 * scale else f"{n / scale:.0f} {unit}"
    return f"{int(n)} B"


def tree_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of all files under a directory, each counted once though several links lead to it."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                continue  # a dangling link or a file that has just gone
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


@contextmanager
def _disk_errors(target: Path, needed: int = 0) -> Iterator[None]:
    """Turn the operating system's refusals into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            need = f"needs {size_text(needed)}, " if needed else ""
            free = size_text(free_bytes(target))
            what = "a limit on file sizes is reached" if error.errno == errno.EFBIG else "the disk is full"
            raise ResourceError(f"{what} while writing {target}: {need}free: {free}; make room and run again") from error
        if error.errno in _REFUSED and _concerns(error, target):
            raise InputError(f"cannot write {target}: {error.strerror}; choose a place that can be written") from error
        raise


def _concerns(error: OSError, target: Path) -> bool:
    """Whether a refusal is about the target, its temporary or a parent, and not about a file that the caller reads."""
    if not isinstance(error.filename, str):
        return True
    name = Path(error.filename)
    return name.parent in (target, target.parent) or name in (target, *target.parents)


def _locked_temporary(target: Path, directory: bool) -> tuple[int, str]:
    """Make and lock a temporary beside ``target``; the lock goes with the descriptor, so a dead writer holds none."""
    prefix = f".{target.name}.partial-"
    while True:
        if directory:
            name = tempfile.mkdtemp(prefix=prefix, dir=target.parent)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, dir=target.parent)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(name):
                return handle, name
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                return handle, name  # a file system without locks: sweep cannot lock either and leaves it alone
        os.close(handle)  # a sweep in another process was faster: try again


def _put_in_place(temporary: Path, target: Path, overwrite: bool) -> None:
    if not overwrite or not target.exists():
        try:
            os.rename(temporary, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise InputError(f"{target} was made by another process in the meantime; choose another name and run again") from None
    elif not _exchange(temporary, target):
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        os.rename(target, aside / "old")
        os.rename(temporary, target)
        shutil.rmtree(aside, ignore_errors=True)
    _sync_directory(target.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step where the system can: renameat2 (Linux) or renamex_np (macOS)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        call, arguments = getattr(libc, "renamex_np", None), (os.fsencode(a), os.fsencode(b), 2)
    else:
        here = -100  # AT_FDCWD
        call, arguments = getattr(libc, "renameat2", None), (here, os.fsencode(a), here, os.fsencode(b), 2)
    return call is not None and call(*arguments) == 0


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                _sync(file)
        _sync_directory(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_directory(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):  # network file systems that cannot
            raise


def _escaped(name: str) -> str:
    """The name with the characters that glob reads as patterns made literal."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

"""crun in a sealed memory file, from which it starts in half the time.

Before crun does anything, it makes sure that a container cannot write to its program file (CVE-2019-5736): it binds
that read-only and executes itself once more from there, unless it runs from a memory file that is sealed (its and
runc's `cloned_binary.c`). So the fork server keeps such a copy for all of its shims; they have it as they have the fork
server's heap. A shim that has no fork server has none, and none is used where the file has become another since.
"""

from __future__ import annotations

import fcntl
import os

NAME = "crun"
_LARGEST = 4 << 20
_FIRST_DESCRIPTOR = 64
_MFD_EXEC = 0x10
"""Since Linux 6.3, where a sysctl may have memory files not executable by default."""
_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF

_descriptor = -1
_source: tuple[int, ...] = ()


def keep() -> None:
    """Makes the copy of the crun that `PATH` leads to; nothing where there is none, or the kernel has no such files."""
    global _descriptor, _source
    path = _found(NAME)
    if not path:
        return
    try:
        source = _identity(path)
        if os.stat(path).st_size <= _LARGEST:
            _descriptor, _source = _sealed(path), source
    except OSError:
        return


def descriptors() -> set[int]:
    """What a process must leave open to start programs from here."""
    return {_descriptor} if _descriptor >= 0 else set()


def program(binary: str) -> str:
    """The file to execute for `binary`, a name or a path: the copy, if it is that of this file, else `binary`."""
    if _descriptor < 0 or os.path.basename(binary) != NAME:
        return binary
    path = _found(binary)
    try:
        return f"/proc/self/fd/{_descriptor}" if path and _identity(path) == _source else binary
    except OSError:
        return binary


def _found(binary: str) -> str:
    """The path of a program; empty if there is none."""
    if "/" in binary:
        return binary
    for directory in os.get_exec_path():
        path = os.path.join(directory, binary)
        if os.access(path, os.X_OK):
            return path
    return ""


def _identity(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sealed(path: str) -> int:
    """A memory file with the content of `path` that nobody can change any more. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        made = os.memfd_create(NAME, flags | _MFD_EXEC)
    except OSError:
        made = os.memfd_create(NAME, flags)
    try:
        program = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while os.sendfile(made, program, None, _LARGEST):
                pass
        finally:
            os.close(program)
        fcntl.fcntl(made, _F_ADD_SEALS, _ALL_SEALS)
        # Out of the way of the numbers that children get.
        return fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR)
    finally:
        os.close(made)

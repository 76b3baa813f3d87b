"""System calls for mounts that Python does not offer, each raising OSError.

The numbers of calls added since Linux 5.1 are the same on every architecture we run on.
"""

from __future__ import annotations

import ctypes
import os

MS_RDONLY = 1
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_SYNCHRONOUS = 1 << 4
MS_REMOUNT = 1 << 5
MS_MANDLOCK = 1 << 6
MS_DIRSYNC = 1 << 7
MS_NOSYMFOLLOW = 1 << 8
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_SILENT = 1 << 15
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

_AT_FDCWD = -100
_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_CLONE_FS = 0x200

_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_OPENAT2 = 437
_CACHESTAT = 451

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """mount(2); an empty `fstype` or `data` is passed as NULL."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(fstype) if fstype else None,
            ctypes.c_ulong(flags),
            os.fsencode(data) if data else None,
        )
    )


def umount2(target: str | bytes, flags: int) -> None:
    _check(_libc.umount2(os.fsencode(target), flags))


def unshare_working_directory() -> None:
    """Gives the calling thread a working directory and umask of its own, for as long as it lives."""
    _check(_libc.unshare(_CLONE_FS))


def fsopen(fstype: str) -> int:
    """A descriptor of a file system that is being configured."""
    return _check(_libc.syscall(_FSOPEN, os.fsencode(fstype), _CLOEXEC))


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    _check(
        _libc.syscall(
            _FSCONFIG,
            fd,
            command,
            os.fsencode(key) if key is not None else None,
            os.fsencode(value) if value is not None else None,
            aux,
        )
    )


def fsmount(fd: int, attributes: int) -> int:
    """A descriptor of a mount that is attached nowhere yet."""
    return _check(_libc.syscall(_FSMOUNT, fd, _CLOEXEC, attributes))


def move_mount(fd: int, target: str) -> None:
    """Attaches the mount of `fd` at `target`."""
    _check(_libc.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH))


def openat2(directory: int, path: str | bytes, flags: int, resolve: int) -> int:
    """openat2(2): a descriptor of `path` under the open `directory`, resolved as the RESOLVE_* flags say."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _check(_libc.syscall(_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))


def cached_pages(fd: int) -> int:
    """How many pages of the file `fd` are in the page cache (cachestat(2), Linux 6.5)."""
    counts = (ctypes.c_uint64 * 5)()
    _check(_libc.syscall(_CACHESTAT, fd, ctypes.byref((ctypes.c_uint64 * 2)()), ctypes.byref(counts), 0))
    return counts[0]


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

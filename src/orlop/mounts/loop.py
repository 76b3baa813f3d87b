"""Loop devices: files as block devices (`linux/loop.h`)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_LOOP_CLR_FD = 0x4C01
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_READ_ONLY = 1
_AUTOCLEAR = 4
_TRIES = 20


class _Info(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("size_limit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_char * 32),
        ("init", ctypes.c_uint64 * 2),
    )


class _Config(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


@contextmanager
def attached(path: str, *, readonly: bool) -> Iterator[str]:
    """The device of the file at `path`. It goes with its last user: what is mounted from it inside the block keeps it.

    Raises OSError.
    """
    descriptor, name = _configured(path, _AUTOCLEAR | (_READ_ONLY if readonly else 0))
    try:
        yield name
    finally:
        os.close(descriptor)


def attach(path: str, *, readonly: bool) -> str:
    """A device of the file at `path` that stays until `detach`. Raises OSError."""
    descriptor, name = _configured(path, _READ_ONLY if readonly else 0)
    os.close(descriptor)
    return name


def detach(device: str) -> None:
    """Frees `device` once its last user goes; one that is free is fine."""
    with suppress(FileNotFoundError):
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        finally:
            os.close(descriptor)


def device_of(path: str) -> str | None:
    """The first device that is made of the file at `path`, if there is one."""
    wanted = os.path.realpath(path)
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with suppress(OSError):  # it may go at any moment
            if backing.read_text().rstrip("\n") == wanted:
                return f"/dev/{backing.parent.parent.name}"
    return None


def _configured(path: str, flags: int) -> tuple[int, str]:
    access = (os.O_RDONLY if flags & _READ_ONLY else os.O_RDWR) | os.O_CLOEXEC
    with ExitStack() as closing:
        file = os.open(path, access)
        closing.callback(os.close, file)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        closing.callback(os.close, control)
        config = _Config(fd=file, info=_Info(flags=flags, file_name=os.fsencode(path)[:63]))
        for _ in range(_TRIES):
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, access)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # else somebody else was faster to take it
                    raise
            else:
                return device, name
    raise OSError(errno.EBUSY, "no loop device is free", path)

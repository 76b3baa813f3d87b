"""syncfs(2) and sync_file_range(2), which Python does not offer."""

from __future__ import annotations

import ctypes
import os

from orlop.errors import Unknown

_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(path: str) -> None:
    """Writes the whole file system that `path` lies on to its disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) < 0:
            raise Unknown(f"failed to syncfs for {path}: {os.strerror(ctypes.get_errno()).lower()}")
    finally:
        os.close(fd)


def start_writeback(fd: int) -> None:
    """Lets the kernel begin to write what is dirty of the file `fd`. A hint: what fails here shows at fsync."""
    _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)

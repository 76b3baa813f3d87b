"""syncfs(2), which Python does not offer."""

from __future__ import annotations

import ctypes
import os

from orlop.errors import Unknown

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(path: str) -> None:
    """Writes the whole file system that `path` lies on to its disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) < 0:
            raise Unknown(f"failed to syncfs for {path}: {os.strerror(ctypes.get_errno()).lower()}")
    finally:
        os.close(fd)

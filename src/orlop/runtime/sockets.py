"""Sockets that dead shims left in the directory they share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat


def remove_dead(address: str) -> None:
    """Removes the socket at `address` if nobody listens there. Whoever makes one there holds the directory's lock."""
    path = address.removeprefix("unix://")
    if not os.path.isabs(path) or not os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if stat.S_ISSOCK(os.lstat(path).st_mode) and _is_dead(path):
                os.unlink(path)
        finally:
            os.close(directory)


def _is_dead(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:  # a full queue is a living one
            return False
        return False

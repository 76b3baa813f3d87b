"""Disk space kept back, so that a full disk can still be tidied: SQLite needs room for its log even to delete."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SIZE = 8 << 20
"""Bytes."""


class Reserve:
    """A file of `size` allocated bytes at `path`, given up when nothing else helps, made again later."""

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self._path = path
        self._size = size
        self.is_spent = False
        """Given up and not yet made again. A disk that never had room for it is not spent, only unprotected."""
        self.make()

    def make(self) -> bool:
        """Allocates it where it is missing; tells whether it is there now."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(descriptor, 0, self._size)
        except OSError:
            os.ftruncate(descriptor, 0)
            return False
        finally:
            os.close(descriptor)
        self.is_spent = False
        return True

    def spend(self) -> bool:
        """Gives the space up; tells whether there was any."""
        if self.is_spent:
            return False
        self.is_spent = True
        with contextlib.suppress(FileNotFoundError):
            held = os.stat(self._path).st_blocks > 0
            os.truncate(self._path, 0)
            return held
        return False

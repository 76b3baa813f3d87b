"""Counts how often SQLite asks the disk to make a file durable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw


@contextmanager
def counted_syncs() -> Iterator[list[str]]:
    """The names of the files, one for each sync by connections that are opened inside."""
    synced: list[str] = []
    base = apsw.vfs_names()[0]

    class File(apsw.VFSFile):
        def __init__(self, vfs: str, name: Any, flags: list[int]) -> None:
            super().__init__(vfs, name, flags)
            self._name = name if isinstance(name, str) or name is None else name.filename()

        def xSync(self, flags: int) -> None:
            synced.append(str(self._name))
            super().xSync(flags)

    class Counting(apsw.VFS):
        def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
            return File(base, name, flags)

    vfs = Counting("counting", base, makedefault=True)
    try:
        yield synced
    finally:
        vfs.unregister()

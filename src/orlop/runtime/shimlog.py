"""What shims write to their standard error, brought into the daemon's log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Self

log = logging.getLogger("orlop.shim")

_LINE_LIMIT = 16 << 10


class ShimLog:
    """Reads a bundle's `log` FIFO. It is opened both ways, so that shims may come and go without an end of file."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._rest = b""
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """None where there is no FIFO to read."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        return cls(descriptor, path.parent.name)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            *lines, self._rest = (self._rest + os.read(self._descriptor, 64 << 10)).split(b"\n")
            if len(self._rest) > _LINE_LIMIT:
                lines.append(self._rest)
                self._rest = b""
            for line in lines:
                if line:
                    log.info("%s: %s", self._name, line[:_LINE_LIMIT].decode("utf-8", "replace"))

    def close(self) -> None:
        if self._descriptor >= 0:
            self._read()
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

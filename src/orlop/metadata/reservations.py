"""Names that calls work on: another call for one of them waits until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Reservations:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, ...], tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def held(self, *names: tuple[str, ...]) -> AsyncIterator[None]:
        """Inside, nobody else is inside with one of `names`."""
        # Everybody takes them in the same order, so that no two wait for each other.
        ordered = sorted(names)
        taken = []
        for name in ordered:
            lock, users = self._locks.get(name, (asyncio.Lock(), 0))
            self._locks[name] = lock, users + 1
        try:
            for name in ordered:
                lock = self._locks[name][0]
                await lock.acquire()
                taken.append(lock)
            yield
        finally:
            for lock in taken:
                lock.release()
            for name in ordered:
                lock, users = self._locks.pop(name)
                if users > 1:
                    self._locks[name] = lock, users - 1

"""A limit of bytes a second that many streams share."""

from __future__ import annotations

import asyncio

from orlop.core import clock


class Bandwidth:
    """Lets `limit` bytes a second through, 0 for any number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free_at = 0.0

    @property
    def is_limited(self) -> bool:
        return self._limit > 0

    async def take(self, size: int) -> None:
        """Waits until the bytes before have had their time; `size` bytes then take theirs."""
        if not self.is_limited:
            return
        now = clock.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + size / self._limit
        if start > now:
            await asyncio.sleep(start - now)


class Budget:
    """A number of things that may be had at a time, for those who can do without."""

    def __init__(self, size: int) -> None:
        self._free = size

    def take(self) -> bool:
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def give_back(self) -> None:
        self._free += 1

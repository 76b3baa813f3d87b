"""A gate that many pass at once, and that one closes to be alone: writers pass, the sweep closes it.

Who closes it waits for those inside and comes before those who arrive later, so that writers cannot starve the sweep.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._inside = 0
        self._closer = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Inside together with others who pass, and never with who has closed it."""
        async with self._closer:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Inside alone."""
        async with self._closer:
            await self._empty.wait()
            yield

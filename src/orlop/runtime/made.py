"""What there is of a task that is being created, so that it can be undone at any point."""

from __future__ import annotations

import asyncio
import contextlib

from orlop.errors import OrlopError
from orlop.runtime.bundle import Bundle
from orlop.runtime.names import ShimBinary
from orlop.runtime.shim import Shim


class Made:
    """What a create has made so far. Steps under way are not cancelled with it: what they make would be lost."""

    def __init__(self) -> None:
        self.making: asyncio.Task[Bundle] | None = None
        self.unpacking: asyncio.Task[None] | None = None
        self.starting: asyncio.Task[Shim] | None = None
        self.binary: ShimBinary | None = None
        self.bundle: Bundle | None = None
        self.shim: Shim | None = None
        self.refused = False

    async def settle(self) -> None:
        """Waits for the step under way, and takes what came of it."""
        with contextlib.suppress(OrlopError, OSError):
            if self.making is not None:
                self.bundle = await self.making
            if self.unpacking is not None:
                await self.unpacking
            if self.starting is not None:
                self.shim = await self.starting

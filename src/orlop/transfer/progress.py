"""What clients are told while a transfer goes on, in the words and at the times that they draw their display by."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orlop.core.descriptor import Descriptor
from orlop.core.stream import Stream
from orlop.core.transfer import Progress, Report
from orlop.core.wire import common
from orlop.core.wire import transfer as wire
from orlop.errors import Canceled
from orlop.transfer import refs

PERIOD = 0.3
"""Seconds between two looks at what is under way."""

COMPLETE, EXISTS, EXTRACTING, EXTRACTED = "complete", "already exists", "extracting", "extracted"


@asynccontextmanager
async def reporting(stream: Stream) -> AsyncIterator[Report]:
    """Sends what is reported over `stream`, which is closed at the end. A client that is gone is told nothing."""
    waiting: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def send() -> None:
        with contextlib.suppress(Canceled):
            while (progress := await waiting.get()) is not None:
                await stream.send(common.pack(wire.progress(progress)))

    sending = asyncio.create_task(send())
    try:
        yield waiting.put_nowait
        waiting.put_nowait(None)
        await sending
    finally:
        sending.cancel()
        await stream.close()


@dataclass(slots=True)
class _Part:
    descriptor: Descriptor
    name: str
    parents: tuple[str, ...]
    state: str = "waiting"
    offset: Callable[[], int] = field(default=lambda: 0)
    told: int = 0


class Tracker:
    """The blobs of a transfer below `root`, each reported when its state changes and, under way, in every period.

    `moving` is the word for a blob under way: `downloading` or `uploading`.
    """

    def __init__(self, report: Report, root: str, moving: str) -> None:
        self._report = report
        self._root = root
        self._moving = moving
        self._parts: dict[str, _Part] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            self._look()

    def add(self, descriptor: Descriptor, parents: Iterable[Descriptor] = ()) -> None:
        if descriptor.digest in self._parts:
            return
        above = tuple(refs.ref_of(parent) for parent in parents) or (self._root,)
        part = _Part(descriptor, refs.ref_of(descriptor), above)
        self._parts[descriptor.digest] = part
        self._tell(part, "waiting", 0)

    def move(self, descriptor: Descriptor, offset: Callable[[], int]) -> None:
        """It is under way now; `offset` tells how far it has come."""
        part = self._parts.get(descriptor.digest)
        if part is not None and part.state in ("waiting", self._moving):
            part.state, part.offset = self._moving, offset

    def finish(self, descriptor: Descriptor, state: str = COMPLETE) -> None:
        part = self._parts.get(descriptor.digest)
        if part is not None and part.state != state:
            part.state = state
            self._tell(part, state, descriptor.size)

    def extract(self, descriptor: Descriptor) -> None:
        part = self._parts.get(descriptor.digest)
        if part is not None:
            part.state = EXTRACTING
            self._tell(part, EXTRACTING, 0)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            self._look()

    def _look(self) -> None:
        for part in self._parts.values():
            if part.state == self._moving and (offset := part.offset()) > part.told:
                part.told = offset
                self._tell(part, self._moving, offset)

    def _tell(self, part: _Part, event: str, progress: int) -> None:
        self._report(Progress(event, part.name, part.parents, progress, part.descriptor.size, part.descriptor))

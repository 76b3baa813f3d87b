"""The bytes of a blob, in order, from whoever gives them: resumed where they broke off, from the next host if need be.

A large blob is fetched in ranges where the first of them comes slowly, else as one stream. Connections are added while
the reader has to wait for bytes; each has at most one range in memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from orlop.core import clock
from orlop.core.descriptor import Descriptor
from orlop.errors import OrlopError
from orlop.registry.bandwidth import Bandwidth, Budget
from orlop.registry.failures import Broken, GivenUp
from orlop.registry.outcomes import Outcome
from orlop.registry.retries import Retries
from orlop.registry.settings import Settings
from orlop.registry.source import Source, WrongRange

_SAMPLE = 256 << 10
"""Bytes by which the speed of a connection is judged."""

_PROGRESS = 1 << 20
"""So many bytes since the last failure are worth new attempts; fewer could go on for ever."""


class Download:
    """A blob on its way, from `offset`. `close` it."""

    def __init__(
        self,
        what: str,
        descriptor: Descriptor,
        offset: int,
        sources: Sequence[Source],
        settings: Settings,
        extra: Budget,
        bandwidth: Bandwidth,
    ) -> None:
        self._what = what
        self._size = descriptor.size
        self._position = offset
        self._sources = sources
        self._settings = settings
        self._extra = extra
        self._bandwidth = bandwidth
        self._pieces: deque[_Piece] = deque()
        self._lanes = 1
        self._started = offset

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Raises, once no source is left, what the gravest failure was."""
        if 0 < self._size <= self._position:
            return
        outcome = Outcome()
        for source in self._sources:
            try:
                async with aclosing(self._from(source)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except OrlopError as error:
                outcome.add(error, source.host)
        raise outcome.error(self._what)

    async def close(self) -> None:
        """Ends all connections."""
        pieces, self._pieces = self._pieces, deque()
        for piece in pieces:
            piece.cancel()
        for piece in pieces:
            await piece.ended_anyhow()
        while self._lanes > 1:
            self._lanes -= 1
            self._extra.give_back()

    async def _from(self, source: Source) -> AsyncGenerator[bytes, None]:
        """The rest of the blob from one source, with as many attempts as the policy has."""
        retries = Retries(self._settings)
        mark = self._position
        ranged = True
        while True:
            try:
                async with aclosing(self._attempt(source, ranged)) as chunks:
                    async for chunk in chunks:
                        self._position += len(chunk)
                        if self._bandwidth.is_limited:
                            await self._bandwidth.take(len(chunk))
                        yield chunk
                return
            except WrongRange:
                if not ranged:
                    raise
                ranged = False
            except Broken:
                if self._position - mark >= _PROGRESS:
                    retries.restart()
                mark = self._position
                if not retries.another():
                    raise
                await retries.wait()
            finally:
                await self.close()

    async def _attempt(self, source: Source, ranged: bool) -> AsyncGenerator[bytes, None]:
        start = self._position
        left = self._size - start
        is_large = left >= self._settings.ranges_from and left > self._settings.range_size
        in_pieces = ranged and self._settings.ranges > 1 and is_large
        end = start + self._settings.range_size if in_pieces else None
        async with source.open(start, end, ranged=ranged) as part:
            if not in_pieces or part.whole:
                async for chunk in part.chunks(start):
                    yield chunk
                return
            self._started = part.end
            async for chunk in self._sampled(source, part.chunks(start)):
                yield chunk
        if self._pieces:
            async for chunk in self._rest(source):
                yield chunk
            return
        async with source.open(self._started, None) as part:
            async for chunk in part.chunks(self._started):
                yield chunk

    async def _sampled(self, source: Source, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The first range; a second connection is opened beside it if it turns out to be slow."""
        came, waited, since = 0, 0.0, clock.monotonic()
        async for chunk in chunks:
            waited += clock.monotonic() - since
            came += len(chunk)
            if came >= _SAMPLE and came < waited * self._settings.single_rate and not self._pieces:
                self._widen(source)
            yield chunk
            since = clock.monotonic()

    async def _rest(self, source: Source) -> AsyncGenerator[bytes, None]:
        """The pieces behind the first, in order; each that has been read makes room for another."""
        self._fill(source)
        while self._pieces:
            piece = self._pieces[0]
            while True:
                if piece.chunks:
                    yield piece.chunks.popleft()
                elif piece.ended:
                    break
                else:
                    self._widen(source)
                    await piece.changed()
            await piece.result()
            self._pieces.popleft()
            self._fill(source)

    def _widen(self, source: Source) -> None:
        """The reader waits for bytes: another connection may bring more."""
        if self._lanes < self._settings.ranges and self._started < self._size and self._extra.take():
            self._lanes += 1
            self._start(source)

    def _fill(self, source: Source) -> None:
        while len(self._pieces) < self._lanes and self._started < self._size:
            self._start(source)

    def _start(self, source: Source) -> None:
        piece = _Piece(self._started, min(self._started + self._settings.range_size, self._size))
        self._started = piece.end
        self._pieces.append(piece)
        piece.start(source, Retries(self._settings))


class _Piece:
    """A range of the blob that a task of its own fetches into memory."""

    def __init__(self, start: int, end: int) -> None:
        self.end = end
        self.chunks: deque[bytes] = deque()
        self._start = start
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self._task is None or self._task.done()

    def start(self, source: Source, retries: Retries) -> None:
        self._task = asyncio.create_task(self._run(source, retries))
        self._task.add_done_callback(lambda _: self._changed.set())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def ended_anyhow(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()

    async def result(self) -> None:
        """Raises what the task ended with."""
        if self._task is not None:
            await self._task

    async def changed(self) -> None:
        """Waits until more has come, or the end."""
        self._changed.clear()
        await self._changed.wait()

    async def _run(self, source: Source, retries: Retries) -> None:
        position = mark = self._start
        while position < self.end:
            try:
                async with source.open(position, self.end) as part:
                    if part.whole:
                        raise WrongRange(f"{source.shown}: ranges are ignored after one was given")
                    async for chunk in part.chunks(position):
                        position += len(chunk)
                        self.chunks.append(chunk)
                        self._changed.set()
            except Broken as error:
                if position - mark >= _PROGRESS:
                    retries.restart()
                mark = position
                if not retries.another():
                    raise GivenUp.verbatim(str(error)) from None
                await retries.wait()

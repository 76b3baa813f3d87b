"""A blob that arrives, for those who read it meanwhile.

Nothing is kept in memory for them: they read the ingest's file, as far as it has been written, in threads of their own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

from orlop.errors import Canceled, Unavailable

_PIECE = 1 << 18


class Arrival:
    """`offset` bytes have arrived. Belongs to the event loop of who fetches; what `follow` gives is for threads."""

    def __init__(self) -> None:
        self.offset = 0
        self.over = asyncio.Event()
        """Set when no more will come, whether all has come or not."""
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether there is a file to follow."""
        self._changed = threading.Condition()
        self._file = -1
        self._ended = False
        self._whole = False

    @property
    def is_broken(self) -> bool:
        """It is over, and not all has arrived."""
        return self._ended and not self._whole

    def open(self, file: int) -> None:
        """`file`, which is this object's from now on, has the bytes; -1 where nothing can be followed."""
        self._file = file
        if not self.opened.done():
            self.opened.set_result(file >= 0)

    def grow(self, offset: int) -> None:
        with self._changed:
            self.offset = offset
            self._changed.notify_all()

    def end(self, *, whole: bool) -> None:
        """`whole`: all has arrived and is what was asked for."""
        if not self.opened.done():
            self.opened.set_result(False)
        with self._changed:
            self._ended, self._whole = True, whole
            self._changed.notify_all()
        self.over.set()

    def close(self) -> None:
        """Nobody begins to follow any more; who does so already goes on."""
        with self._changed:
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def follow(self) -> Follower | None:
        """A reader of all bytes as they arrive; None where they cannot be read here: before, or when it is over."""
        with self._changed:
            return Follower(os.dup(self._file), self) if self._file >= 0 else None

    def wait_for_more(self, at: int, follower: Follower) -> int:
        """Waits for more than `at` bytes, or for the end; returns how many there are. Raises as a follower does."""
        with self._changed:
            self._changed.wait_for(lambda: self.offset > at or self._ended or follower.is_abandoned)
            if follower.is_abandoned:
                raise Canceled("layer")
            if self.is_broken:
                raise Unavailable("layer: the rest of it did not arrive")
            return self.offset

    def wake(self) -> None:
        """Has those who wait look again."""
        with self._changed:
            self._changed.notify_all()


class Follower:
    """Iterated in a thread, which it blocks. Raises Unavailable where the rest does not come. Close it."""

    def __init__(self, file: int, arrival: Arrival) -> None:
        self._file = file
        self._arrival = arrival
        self.is_abandoned = False

    def abandon(self) -> None:
        """The iteration ends by Canceled, also where it waits for bytes that may be long in coming."""
        self.is_abandoned = True
        self._arrival.wake()

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        while (until := self._arrival.wait_for_more(at, self)) > at:
            while at < until:
                data = os.pread(self._file, min(_PIECE, until - at), at)
                at += len(data)
                yield data

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

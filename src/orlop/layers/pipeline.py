"""Stages of a stream in threads of their own, so that decompressing, digesting and writing files overlap.

The work of each stage releases the interpreter's lock; the hand-over between them is a queue of a few pieces. A thread
begins when a stream turns out to be long: for a short one it costs more than it saves.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from orlop.core.content import Reader
from orlop.errors import Canceled

_DEPTH = 8
_READ = 1 << 18
_ALONE = 8
"""Pieces of a stream before other threads help with it."""

T = TypeVar("T")


class Ahead:
    """Iterates over `source`: soon in another thread, a few pieces ahead.

    Leaving the `with` ends that thread, and sets `stop` for what else works for it."""

    def __init__(self, source: Iterable[bytes], stop: threading.Event) -> None:
        self._pieces = iter(source)
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
        self._stop = stop
        self._left = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self._stop.set()
        if self._thread is None:
            self._close()
            return
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(_ALONE):
            if (piece := next(self._pieces, None)) is None:
                return
            if self._stop.is_set():
                raise Canceled("layer")
            yield piece
        self._thread = threading.Thread(target=self._run, name="layer-read")
        self._thread.start()
        while (following := self._queue.get()) is not None:
            if isinstance(following, BaseException):
                raise following
            yield following

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for piece in self._pieces:
                if self._left:
                    break
                if self._stop.is_set():
                    raise Canceled("layer")
                self._queue.put(piece)
        except BaseException as error:  # carried to the thread that iterates
            end = error
        finally:
            self._close()
        self._queue.put(end)

    def _close(self) -> None:
        if close := getattr(self._pieces, "close", None):
            close()


class Digester:
    """Passes pieces on while they are digested, soon by another thread; `digest` and `size` are final when the `with`
    has ended."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
        self._thread: threading.Thread | None = None
        self._added = 0
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self._added += 1
        if self._added <= _ALONE:
            self._hash.update(piece)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="layer-digest")
            self._thread.start()
        self._queue.put(piece)

    def passing(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.add(piece)
            yield piece

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._hash.update(piece)


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Runs `work` in a thread. Cancelled, it sets the event that `work` watches, and waits until it has ended."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([running])
        running.exception() if not running.cancelled() else None
        raise


def pieces_of(reader: Reader) -> Iterator[bytes]:
    """The blob of `reader` from its start."""
    fd = reader.fileno()
    offset = 0
    while data := os.pread(fd, min(_READ, reader.size - offset), offset):
        yield data
        offset += len(data)

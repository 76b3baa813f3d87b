"""Layers that are made while their blobs are still being written.

A client that imports or pulls by itself writes all blobs first, and asks only then to have each applied. So what is
written and looks like a layer is followed, decompressed and indexed meanwhile. Once the blob is committed, and is what
it was said to be, the snapshotter keeps the layer for a while, for whoever applies that blob. Nothing of it can be seen
before; and what goes wrong here is none of the client's business, as the layer is made when it is asked for then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping

from orlop import faults
from orlop.core.content import ContentInfo, IngestStatus, Writer
from orlop.core.layer import LayerPlace
from orlop.errors import Canceled, OrlopError
from orlop.layers import header, keep
from orlop.layers.compression import Compression, Limits, decompress, detect
from orlop.layers.keep import Keepers
from orlop.layers.media import Opening, source
from orlop.layers.pipeline import Ahead, Digester

BEGIN = 1 << 16
"""Bytes of a blob that have arrived before a layer is made of it: small ones are made soon enough."""
WAITING_LIMIT = 128
"""Blobs of which layers are to be made, besides those of which they are: as many as an image has."""
LIFE = 60.0
"""Seconds that a layer is kept for whoever applies its blob."""
UNASKED_LIMIT = 3
"""After so many layers in a row that nobody asked for, none are made until somebody applies one."""
FREE = 20
"""No layer is made where less than one part in so many of the disk is free."""

_PIECE = 1 << 18
_LOOK = 32 << 20
"""Bytes of a layer after which the free space is looked at again."""
_HEAD = 512

_log = logging.getLogger(__name__)


class LayersAhead:
    """Implements `orlop.core.content.BlobWatcher`. Belongs to one event loop; `settle` is for threads."""

    def __init__(self, keepers: Keepers, limits: Limits, entries_limit: int, *, life: float = LIFE) -> None:
        self.keepers = keepers
        self.limits = limits
        self.entries_limit = entries_limit
        self.life = life
        self._at_once = max(os.cpu_count() or 1, 2)
        self._lock = threading.Lock()
        self._making: set[Making] = set()
        self._waiting: dict[Making, None] = {}
        """Those whose turn has not come, the first in front."""
        self._unasked: set[str] = set()
        """Blobs of which a layer was made, or is, and that nobody has applied yet."""
        self._in_vain = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._forgetting: set[asyncio.Task[None]] = set()
        self._closed = False

    def watched(self, writer: Writer) -> Writer:
        """As `core.content.BlobWatcher` says."""
        return _WatchedWriter(writer, self)

    def begin(self, writer: Writer) -> Making | None:
        """Begins to make a layer of what `writer` has got and will get; None where that is not done."""
        with self._lock:
            if self._closed or self._in_vain >= UNASKED_LIMIT or len(self._waiting) >= WAITING_LIMIT:
                return None
            fd = writer.share()
            if fd < 0:
                return None
            if not _looks_like_a_layer(fd):
                os.close(fd)
                return None
            making = Making(self, fd)
            self._waiting[making] = None
            self._next()
        return making

    def give_up(self, making: Making) -> None:
        """Nothing is to be made of it."""
        making.cancel()
        with self._lock:
            self._drop(making)

    def committed(self, making: Making, digest: str) -> None:
        """The blob of `making` is stored."""
        loop = asyncio.get_running_loop()
        making.ended = lambda: loop.call_soon_threadsafe(self._wait_for_somebody, digest)
        with self._lock:
            if making in self._making or making in self._waiting:
                self._unasked.add(digest)
                making.commit(digest)

    def forget(self, making: Making, *, is_kept: bool) -> None:
        """The thread of `making` ends."""
        with self._lock:
            self._making.discard(making)
            if not is_kept:
                self._unasked.discard(making.digest)
            self._next()
        if is_kept:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the daemon
                making.ended()

    def settle(self, digest: str, stop: threading.Event) -> None:
        """Somebody applies the blob `digest`: returns when no layer is being made of it, or `stop` is set."""
        with self._lock:
            self._in_vain = 0
            self._unasked.discard(digest)
            making = next((one for one in self._making if one.digest == digest), None)
            for one in [one for one in self._waiting if one.digest == digest]:
                self._drop(one)  # who asks is served sooner by itself
        if making is not None:
            making.wait(stop)

    async def close(self) -> None:
        """Gives up what is being made; what is made and was not asked for stays for the next cleanup."""
        with self._lock:
            self._closed = True
            making = list(self._making)
            for one in list(self._waiting):
                self._drop(one)
        for timer in self._timers.values():
            timer.cancel()
        for one in making:
            one.cancel()
            await asyncio.to_thread(one.thread.join)
        if self._forgetting:
            await asyncio.wait(self._forgetting)

    def _next(self) -> None:
        """Begins with those whose turn has come: first those of which all is there. Called with the lock."""
        while self._waiting and len(self._making) < self._at_once:
            making = next((one for one in self._waiting if one.digest), next(iter(self._waiting)))
            if self._in_vain >= UNASKED_LIMIT:
                self._drop(making)
                continue
            del self._waiting[making]
            self._making.add(making)
            making.thread.start()

    def _drop(self, making: Making) -> None:
        """Called with the lock; one that has begun ends by itself."""
        if making in self._waiting:
            del self._waiting[making]
            self._unasked.discard(making.digest)
            making.close()

    def _wait_for_somebody(self, digest: str) -> None:
        if digest in self._unasked and not self._closed:
            if digest in self._timers:
                self._timers.pop(digest).cancel()
            self._timers[digest] = asyncio.get_running_loop().call_later(self.life, self._expire, digest)

    def _expire(self, digest: str) -> None:
        del self._timers[digest]
        with self._lock:
            if digest not in self._unasked:
                return
            self._unasked.discard(digest)
            self._in_vain += 1
        forgetting = asyncio.create_task(asyncio.to_thread(self.keepers.forget_ahead))
        self._forgetting.add(forgetting)
        forgetting.add_done_callback(self._forgetting.discard)


class Making:
    """A layer that is being made of a blob in the file `fd`. `digest` is the blob's, once that is stored."""

    def __init__(self, ahead: LayersAhead, fd: int) -> None:
        self._ahead = ahead
        self._fd = fd
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._offset = 0
        self.digest = ""
        self.ended: Callable[[], object] = lambda: None
        """Called at the end, in the thread, if there is a layer."""
        self.thread = threading.Thread(target=self._run, name="layer-ahead")

    def grow(self, offset: int) -> None:
        """So many bytes have arrived."""
        with self._changed:
            self._offset = offset
            self._changed.notify_all()

    def commit(self, digest: str) -> None:
        """All has arrived, and is the blob `digest`."""
        with self._changed:
            self.digest = digest
            self._changed.notify_all()

    def cancel(self) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()

    def close(self) -> None:
        os.close(self._fd)

    def wait(self, stop: threading.Event) -> None:
        while self.thread.is_alive() and not stop.is_set():
            self.thread.join(0.1)

    def _run(self) -> None:
        is_kept = False
        try:
            place = self._ahead.keepers.place_ahead(self._ahead.life)
            if place is not None:
                with place as into:
                    is_kept = self._make(into)
        except (OrlopError, OSError) as error:
            _log.debug("a layer is not made ahead of its being applied: %s", error)
        finally:
            self.close()
            self._ahead.forget(self, is_kept=is_kept)

    def _make(self, place: LayerPlace) -> bool:
        """False for what must be unpacked."""
        with Ahead(decompress(self._arriving(), self._ahead.limits), self._stop) as pieces, Digester() as digester:
            traits = keep.index(
                place,
                digester.passing(_of_a_tar(pieces, place)),
                overlaid=True,
                entries_limit=self._ahead.entries_limit,
            )
        if traits is None:
            return False
        is_plain = detect(os.pread(self._fd, _HEAD, 0)) is Compression.NONE
        faults.point("layers.ahead.made")
        place.keep(digester.digest, source(self.digest, Opening.DETECTED), traits)
        if is_plain:
            self._ahead.keepers.remember(digester.digest, source(self.digest, Opening.RAW))
        return True

    def _arriving(self) -> Iterator[bytes]:
        """The blob, as it arrives, to the end that its commit is."""
        at = 0
        while (until := self._await(at)) > at:
            while at < until:
                data = os.pread(self._fd, min(_PIECE, until - at), at)
                if not data:
                    raise Canceled("layer of a blob that was cut")
                at += len(data)
                yield data

    def _await(self, at: int) -> int:
        """Waits for more than `at` bytes, or the commit; returns how many there are. Raises Canceled."""
        with self._changed:
            self._changed.wait_for(lambda: self._offset > at or self.digest or self._stop.is_set())
            if self._stop.is_set():
                raise Canceled("layer")
            return self._offset


class _WatchedWriter:
    """Does as `writer`, and tells what has arrived."""

    def __init__(self, writer: Writer, ahead: LayersAhead) -> None:
        self._writer = writer
        self._ahead = ahead
        self._making: Making | None = None
        self._is_decided = False

    async def status(self) -> IngestStatus:
        return await self._writer.status()

    def digest(self) -> str:
        return self._writer.digest()

    def share(self) -> int:
        return self._writer.share()

    async def write(self, data: bytes) -> int:
        offset = await self._writer.write(data)
        if not self._is_decided and offset >= BEGIN:
            self._is_decided = True
            self._making = self._ahead.begin(self._writer)
        if self._making is not None:
            self._making.grow(offset)
        return offset

    async def truncate(self, size: int) -> None:
        self._give_up()
        self._is_decided = False
        await self._writer.truncate(size)

    async def sync(self) -> None:
        await self._writer.sync()

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> ContentInfo:
        try:
            info = await self._writer.commit(size, expected, labels)
        except BaseException:
            self._give_up()
            raise
        if self._making is not None:
            making, self._making = self._making, None
            self._ahead.committed(making, info.digest)
        return info

    async def close(self) -> None:
        self._give_up()
        await self._writer.close()

    def _give_up(self) -> None:
        if self._making is not None:
            self._ahead.give_up(self._making)
            self._making = None


def _looks_like_a_layer(fd: int) -> bool:
    head = os.pread(fd, _HEAD, 0)
    return detect(head) is not Compression.NONE or header.has_magic(head)


def _of_a_tar(pieces: Iterator[bytes] | Ahead, place: LayerPlace) -> Iterator[bytes]:
    """`pieces` as long as they are worth the disk. Raises Canceled."""
    size, look = 0, 0
    for piece in pieces:
        if not size and not header.has_magic(piece):
            raise Canceled("layer of a blob that is no tar")
        if size >= look:
            look = size + _LOOK
            room = os.fstatvfs(place.tar)
            if room.f_bavail < room.f_blocks // FREE:
                raise Canceled("layer on a disk that is nearly full")
        size += len(piece)
        yield piece

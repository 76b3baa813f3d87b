"""A file that grows at its end and may be changed anywhere, most of it not in memory."""

from __future__ import annotations

import hashlib
import os
from struct import Struct

from orlop.erofs.layout import SLOT, aligned

_FLUSH = 1 << 20
_POSITION = Struct("<QQ")


class Output:
    """What is written to `fd` from `start` on. `digest` depends on the calls alone, not on when they reach the disk."""

    __slots__ = ("_digest", "_fd", "_tail", "_tail_at")

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        self._tail = bytearray()
        self._tail_at = start
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def end(self) -> int:
        return self._tail_at + len(self._tail)

    def append(self, data: bytes) -> None:
        self._tail += data
        if len(self._tail) >= _FLUSH:
            self.flush()

    def append_slots(self, data: bytes) -> None:
        """Appends `data` and fills up its last slot."""
        self.append(data + bytes(-len(data) % SLOT))

    def align(self, unit: int) -> None:
        self.append(bytes(aligned(self.end, unit) - self.end))

    def read(self, at: int, size: int) -> bytes:
        """What was written there; fewer bytes at the end."""
        if at >= self._tail_at:
            start = at - self._tail_at
            return bytes(self._tail[start : start + size])
        data = b""
        while len(data) < size and at + len(data) < self._tail_at:
            wanted = min(size, self._tail_at - at) - len(data)
            if not (piece := os.pread(self._fd, wanted, at + len(data))):
                raise OSError(f"image cut short at {at + len(data)} while it was written")
            data += piece
        return data + bytes(self._tail[: size - len(data)])

    def change(self, at: int, data: bytes) -> None:
        """Replaces what was written at `at`."""
        self._digest.update(_POSITION.pack(at, len(data)))
        self._digest.update(data)
        written = max(0, min(len(data), self._tail_at - at))
        if written:
            write_all(self._fd, data[:written], at)
        start = at + written - self._tail_at
        if written < len(data):
            self._tail[start : start + len(data) - written] = data[written:]

    def flush(self) -> None:
        """Hands everything to the file."""
        self._digest.update(self._tail)
        write_all(self._fd, self._tail, self._tail_at)
        self._tail_at += len(self._tail)
        self._tail = bytearray()

    @property
    def digest(self) -> bytes:
        """Of what has been flushed."""
        return self._digest.digest()


def write_all(fd: int, data: bytes | bytearray, at: int) -> None:
    """pwrite(2) until all is written."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, at)
        rest = rest[written:]
        at += written

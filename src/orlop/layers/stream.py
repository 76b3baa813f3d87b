"""A stream of bytes that knows its position: what readers of foreign formats take their input from.

The input is any iterator of chunks; nothing is copied that need not be, and nothing is held longer than a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from orlop.errors import Unknown

Chunk = bytes | memoryview


def unexpected_end() -> Unknown:
    """A stream that ends inside something, in the words clients know."""
    return Unknown("unexpected EOF")


class ByteStream:
    """Reads forward over `chunks`; `offset` is the number of bytes taken so far."""

    __slots__ = ("_at", "_chunk", "_chunks", "offset")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._chunk: bytes = b""
        self._at = 0
        self.offset = 0

    def _fill(self) -> bool:
        while self._at == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._chunk = chunk
            self._at = 0
        return True

    def take_up_to(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end of the stream."""
        at = self._at
        part = self._chunk[at : at + size]
        self._at = at + len(part)
        if len(part) < size:
            parts = [part]
            missing = size - len(part)
            while missing and self._fill():
                part = self._chunk[self._at : self._at + missing]
                self._at += len(part)
                missing -= len(part)
                parts.append(part)
            part = b"".join(parts)
        self.offset += len(part)
        return part

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises Unknown `unexpected EOF` if there are fewer."""
        part = self.take_up_to(size)
        if len(part) < size:
            raise unexpected_end()
        return part

    def pieces(self, size: int) -> Iterator[Chunk]:
        """The next `size` bytes as they lie in the chunks. Raises Unknown `unexpected EOF` if there are fewer."""
        while size:
            if not self._fill():
                raise unexpected_end()
            at = self._at
            part = memoryview(self._chunk)[at : at + size]
            self._at = at + len(part)
            self.offset += len(part)
            size -= len(part)
            yield part

    def skip(self, size: int) -> None:
        """Passes over `size` bytes. Raises as `take`."""
        while size:
            left = len(self._chunk) - self._at
            step = min(size, left)
            self._at += step
            self.offset += step
            size -= step
            if size and not self._fill():
                raise unexpected_end()

    def drain(self) -> None:
        """Reads to the end of the stream, which tells of damage there."""
        while self._fill():
            self.offset += len(self._chunk) - self._at
            self._at = len(self._chunk)


class Copied:
    """Pieces that are written to the file `fd` when they are taken; `size` counts their bytes."""

    def __init__(self, pieces: Iterable[bytes], fd: int) -> None:
        self._pieces = pieces
        self._fd = fd
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            written = os.write(self._fd, piece)
            while written < len(piece):
                written += os.write(self._fd, memoryview(piece)[written:])
            self.size += written
            yield piece

"""A frame: length, stream, kind and flags in ten bytes, then at most 4 MiB of payload."""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct(">IIBB")
MAX_PAYLOAD = 4 << 20

REQUEST = 1
RESPONSE = 2
DATA = 3

REMOTE_CLOSED = 1
"""The sender sends no more on this stream."""
REMOTE_OPEN = 2
"""The sender of this request will send data on the stream."""
NO_DATA = 4
"""There is no message in this frame, not even an empty one."""


class Frame(NamedTuple):
    stream: int
    kind: int
    flags: int
    payload: bytes
    oversize: int = 0
    """The length a frame claimed when it was over the limit: its payload was dropped. Otherwise 0."""


def oversize_text(length: int) -> str:
    return f"message length {length} exceed maximum message size of {MAX_PAYLOAD}"


class FrameParser:
    """Turns chunks of a byte stream into frames; holds at most one frame's bytes."""

    __slots__ = ("_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    @property
    def is_within(self) -> bool:
        """Whether a frame has arrived in part."""
        return bool(self._buffer or self._skip)

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that are complete once `chunk` has arrived. A frame over the limit is told when its header is."""
        data: bytes | bytearray = chunk
        if self._buffer:
            self._buffer += chunk
            data = self._buffer
        frames: list[Frame] = []
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                skipped = min(self._skip, end - at)
                self._skip -= skipped
                at += skipped
                continue
            start = at + HEADER.size
            if start > end:
                break
            length, stream, kind, flags = HEADER.unpack_from(data, at)
            if length > MAX_PAYLOAD:
                frames.append(Frame(stream, kind, flags, b"", oversize=length))
                self._skip = length
                at = start
                continue
            if start + length > end:
                break
            at = start + length
            frames.append(Frame(stream, kind, flags, bytes(data[start:at])))
        if data is self._buffer:
            del self._buffer[:at]
        elif at < end:
            self._buffer += memoryview(chunk)[at:]
        return frames

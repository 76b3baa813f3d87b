"""What a client sends on one stream: frames' payloads become messages, and room is made for more as they are taken.

A message has one byte that says whether it is compressed and four of length before it (gRPC over HTTP/2,
"Length-Prefixed-Message"). The client may send `WINDOW` bytes ahead of the servicer; only for a message that is larger,
and that the servicer waits for, there is more room, as much as it needs.
"""

from __future__ import annotations

import struct
from collections import deque

from orlop.errors import Internal, OrlopError, ResourceExhausted

WINDOW = 1 << 20
_SMALL = 1 << 10
_PREFIX = struct.Struct(">BI")


class Incoming:
    """`room` is how many bytes the client may still send, `ended` is whether it sends no more."""

    __slots__ = ("_error", "_held", "_largest", "_messages", "_missing", "_parts", "_prefix", "_size", "ended", "room")

    def __init__(self, largest: int) -> None:
        self.room = WINDOW
        self.ended = False
        self._largest = largest
        self._messages: deque[bytes] = deque()
        self._held = 0
        self._prefix = b""
        self._parts: list[bytes | bytearray] = []
        self._size = 0
        self._missing: int | None = None
        self._error: OrlopError | None = None

    def put(self, chunk: bytes) -> None:
        """Takes the next `chunk`, which fits into the room that there was."""
        if self._error is not None:
            return
        self._held += len(chunk)
        position = 0
        while True:
            if self._missing is None:
                if self._prefix:
                    chunk, self._prefix = self._prefix + chunk, b""
                if len(chunk) - position < _PREFIX.size:
                    self._prefix = chunk[position:]
                    return
                compressed, size = _PREFIX.unpack_from(chunk, position)
                if compressed or size > self._largest:
                    self._refuse(compressed, size)
                    return
                self._size = self._missing = size
                position += _PREFIX.size
            end = position + self._missing
            part = chunk[position:end]
            if len(chunk) < end:
                if part:
                    self._keep(part)
                    self._missing -= len(part)
                return
            self._messages.append(b"".join((*self._parts, part)) if self._parts else part)
            self._parts.clear()
            self._missing = None
            position = end

    def take(self) -> bytes | None:
        """The next message, if it is there. Raises what is wrong with it; Internal if the end cuts it off."""
        if self._messages:
            message = self._messages.popleft()
            self._held -= _PREFIX.size + len(message)
            return message
        if self._error is not None:
            raise self._error
        if self.ended and self._held:
            raise Internal.verbatim("unexpected EOF")
        return None

    @property
    def ready(self) -> bool:
        """Whether `take` has something to tell."""
        return bool(self._messages) or self.ended or self._error is not None

    def grant(self, *, waited_for: bool) -> int:
        """How many bytes more the client is to be allowed, and from now on is. 0: it has enough for the time being."""
        if self.ended:
            return 0
        missing = self._missing or 0
        capacity = max(WINDOW, _PREFIX.size + self._size) if waited_for and missing else WINDOW
        granted = capacity - self._held - self.room
        if granted <= 0 or (granted < WINDOW // 2 and not (waited_for and self.room < missing)):
            return 0
        self.room += granted
        return granted

    def _keep(self, chunk: bytes) -> None:
        """Adds a part of a message. Small ones share an object: a message may come byte by byte."""
        parts = self._parts
        if len(chunk) >= _SMALL:
            parts.append(chunk)
        elif parts and isinstance(parts[-1], bytearray):
            parts[-1] += chunk
        else:
            parts.append(bytearray(chunk))

    def _refuse(self, compressed: int, size: int) -> None:
        self._parts.clear()
        if compressed:
            text = "grpc: compressed flag set with identity or empty encoding"
            self._error = Internal.verbatim(text)
        else:
            text = f"grpc: received message larger than max ({size} vs. {self._largest})"
            self._error = ResourceExhausted.verbatim(text)

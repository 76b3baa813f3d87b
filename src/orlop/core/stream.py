"""Streams: messages both ways between a client and what the daemon does for it (the Streaming service).

A client opens a stream under an id of its own and then names the id in another call, whose work reads and writes it.
"""

from __future__ import annotations

from typing import Protocol

from orlop.core.scope import Scope
from orlop.core.typed import Typed


class Stream(Protocol):
    """One end of a stream. It has one reader and any number of writers."""

    async def send(self, message: Typed) -> None:
        """Waits while the other side is behind. Raises Canceled where it is gone or the stream is closed."""

    async def receive(self) -> Typed | None:
        """The next message; None when the other side sends no more."""

    async def close(self) -> None:
        """Ends the stream after what was sent; a second time it does nothing."""


class Streams(Protocol):
    """The streams that clients have opened (plugin type `io.containerd.streaming.v1`)."""

    def get(self, scope: Scope, id: str) -> Stream:
        """The stream that a client has opened as `id` in the namespace. Raises NotFound."""

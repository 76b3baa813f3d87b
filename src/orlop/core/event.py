"""Events: what happened, told to whoever subscribed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from orlop.core.typed import Typed


@dataclass(frozen=True, slots=True)
class Envelope:
    """`event` on `topic` (`/tasks/exit`) in `namespace`, at `timestamp` (nanoseconds since 1970)."""

    timestamp: int
    namespace: str
    topic: str
    event: Typed


class Publisher(Protocol):
    """Where rooms publish. Never blocks and never fails for a slow subscriber."""

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        """Tells subscribers of `payload`, packed with a bare type URL and stamped with the time of this call."""


class Silent:
    """A publisher nobody listens to: for tests, and for stores used alone."""

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        return

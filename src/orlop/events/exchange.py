"""The exchange: every event published goes, in order, to every subscriber whose filter it passes.

Publishers never wait and never fail for a subscriber. Each subscriber has a queue of its own; one that lets it grow
beyond its bounds is cut off with ResourceExhausted, so that it knows of the gap, and costs no more memory.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from google.protobuf.message import Message

from orlop.core import clock, filters, identifiers
from orlop.core.event import Envelope, Publisher
from orlop.core.typed import Typed
from orlop.core.wire.common import pack
from orlop.errors import FailedPrecondition, OrlopError, ResourceExhausted, Unknown
from orlop.events import topics
from orlop.events.fields import adaptor

log = logging.getLogger(__name__)

MAX_QUEUED = 100_000
"""Events that may wait for one subscriber."""
MAX_QUEUED_BYTES = 64 << 20
"""Bytes of payload that may wait for one subscriber."""

_OVERHEAD = 256


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait for a subscriber."""

    events: int = MAX_QUEUED
    bytes: int = MAX_QUEUED_BYTES


class Subscription:
    """One subscriber's events: an asynchronous iterator, and a context that ends the subscription.

    Made by `Exchange.subscribe`; it misses nothing that is published after that call.
    """

    def __init__(self, exchange: Exchange, accepts: filters.Filter, bounds: Bounds) -> None:
        self._exchange = exchange
        self._accepts = accepts
        self._bounds = bounds
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Envelope] = deque()
        self._size = 0
        self._lock = threading.Lock()
        self._arrived = asyncio.Event()
        self._overrun = False
        self._closed = False

    def close(self) -> None:
        """Ends the subscription: what still waits is dropped, and the iterator stops."""
        self._exchange._subscriptions.pop(self, None)
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._size = 0
        self._wake()

    def offer(self, envelope: Envelope) -> None:
        """Queues `envelope` if the filter lets it pass; from any thread."""
        try:
            if not self._accepts(adaptor(envelope)):
                return
        except Exception:
            log.exception("a subscription's filter failed on topic %s", envelope.topic)
            return
        with self._lock:
            if self._closed or self._overrun:
                return
            self._size += len(envelope.event.value) + _OVERHEAD
            if len(self._queue) >= self._bounds.events or self._size > self._bounds.bytes:
                self._overrun = True
                self._queue.clear()
            else:
                self._queue.append(envelope)
        self._wake()

    def _wake(self) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._arrived.set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.set)

    def __aiter__(self) -> AsyncIterator[Envelope]:
        return self

    async def __anext__(self) -> Envelope:
        """The next event. Raises ResourceExhausted if this subscriber fell too far behind."""
        while True:
            with self._lock:
                if self._overrun:
                    raise ResourceExhausted(
                        f"subscriber fell behind by more than {self._bounds.events} events "
                        f"or {self._bounds.bytes} bytes"
                    )
                if self._queue:
                    envelope = self._queue.popleft()
                    self._size -= len(envelope.event.value) + _OVERHEAD
                    return envelope
                if self._closed:
                    raise StopAsyncIteration
                self._arrived.clear()
            await self._arrived.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(eq=False)
class Exchange(Publisher):
    """Where the daemon's events meet. Publishing may be done from any thread."""

    bounds: Bounds = Bounds()
    _subscriptions: dict[Subscription, None] = field(default_factory=dict)
    _order: threading.Lock = field(default_factory=threading.Lock)

    @property
    def publisher(self) -> Publisher:
        return self

    @property
    def subscribers(self) -> int:
        return len(self._subscriptions)

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        self.publish_typed(namespace, topic, pack(payload))

    def publish_typed(self, namespace: str, topic: str, payload: Typed) -> None:
        """Publishes `payload` as it is, stamped with the time of this call.

        Raises FailedPrecondition without a namespace, InvalidArgument for a malformed topic.
        """
        if not namespace:
            raise FailedPrecondition("failed publishing event: namespace is required")
        try:
            identifiers.validate(namespace, "namespace validation")
        except OrlopError as error:
            raise error.within("failed publishing event") from None
        topics.validate_topic(topic)
        with self._order:
            self._deliver(Envelope(clock.now(), namespace, topic, payload))

    def forward(self, envelope: Envelope) -> None:
        """Publishes another's `envelope` with its own namespace and time. Raises InvalidArgument if malformed."""
        topics.validate(envelope)
        with self._order:
            self._deliver(envelope)

    def subscribe(self, expressions: Sequence[str] = ()) -> Subscription:
        """All events from now on, of all namespaces, that pass one of the filters `expressions`.

        Raises Unknown for a filter that does not parse. Close the subscription, or use it as a context.
        """
        try:
            accepts = filters.parse(expressions)
        except OrlopError as error:
            raise Unknown(f"failed parsing subscription filters: {error}") from None
        subscription = Subscription(self, accepts, self.bounds)
        self._subscriptions[subscription] = None
        return subscription

    def close(self) -> None:
        """Ends all subscriptions."""
        for subscription in list(self._subscriptions):
            subscription.close()

    def _deliver(self, envelope: Envelope) -> None:
        for subscription in list(self._subscriptions):
            subscription.offer(envelope)

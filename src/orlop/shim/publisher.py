"""Events on their way to the daemon: in order, and kept while the daemon is away."""

from __future__ import annotations

import logging
import time
from collections import deque

from google.protobuf.message import Message

from orlop.api.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from orlop.errors import DeadlineExceeded, OrlopError, Unavailable
from orlop.shim import loop
from orlop.shim.ttrpc import Client

log = logging.getLogger(__name__)

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_TIMEOUT = 5.0
_REFUSALS = 5
_LONGEST_PAUSE = 10.0
_LIMIT = 8192


class Publisher:
    """Forwards events to the ttrpc socket at `address`; without an address they go nowhere.

    While the daemon cannot be reached the queue is tried again for as long as the shim lives. At `_LIMIT` events the
    oldest that tells of no exit is dropped.
    """

    def __init__(self, namespace: str, address: str) -> None:
        self._namespace = namespace
        self._address = address
        self._queue: deque[ForwardRequest] = deque()
        self._filled = loop.Event()
        self._idle = loop.Event()
        self._idle.set()
        self._client: Client | None = None

    @property
    def is_idle(self) -> bool:
        """Whether all events have been taken."""
        return not self._queue

    def hang_up(self) -> None:
        """Closes the connection; the next event makes another."""
        if self._client is not None:
            self._client.abort()

    def publish(self, topic: str, event: Message) -> None:
        """Queues `event`, stamped with the time of this call."""
        if not self._address:
            return
        request = ForwardRequest()
        request.envelope.namespace = self._namespace
        request.envelope.topic = topic
        now = time.time_ns()
        request.envelope.timestamp.seconds, request.envelope.timestamp.nanos = divmod(now, 10**9)
        request.envelope.event.type_url = event.DESCRIPTOR.full_name
        request.envelope.event.value = event.SerializeToString()
        if len(self._queue) >= _LIMIT:
            self._drop()
        self._queue.append(request)
        self._idle.clear()
        self._filled.set()

    async def run(self) -> None:
        """Sends until cancelled."""
        try:
            while True:
                await self._filled.wait()
                await self._send(self._queue[0])
                self._queue.popleft()
                if not self._queue:
                    self._filled.clear()
                    self._idle.set()
        finally:
            if self._client is not None:
                self._client.abort()

    async def flush(self, timeout: float) -> None:
        """Waits up to `timeout` seconds until all events are sent."""
        try:
            async with loop.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d events could not be delivered", len(self._queue))

    async def _send(self, request: ForwardRequest) -> None:
        pause, refusals = 0.1, 0
        while True:
            try:
                if self._client is None or not self._client.is_open:
                    self._client = Client(self._address.removeprefix("unix://"))
                metadata = {"containerd-namespace-ttrpc": self._namespace}
                await self._client.call(_SERVICE, "Forward", request, timeout=_TIMEOUT, metadata=metadata)
                return
            except (OSError, Unavailable, DeadlineExceeded) as error:
                log.debug("event %s is kept: %s", request.envelope.topic, error)
            except OrlopError as error:
                refusals += 1
                if refusals >= _REFUSALS:
                    log.error("event %s is dropped: %s", request.envelope.topic, error)
                    return
            await loop.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _drop(self) -> None:
        # the first may be on its way
        index = next((i for i, r in enumerate(self._queue) if i and not r.envelope.topic.endswith("/exit")), 1)
        log.error("too many events wait: %s is dropped", self._queue[index].envelope.topic)
        del self._queue[index]

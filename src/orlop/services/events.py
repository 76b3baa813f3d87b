"""The Events service: publish, forward, subscribe."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.events.v1 import events_pb2 as api
from orlop.api.types.event_pb2 import Envelope as WireEnvelope
from orlop.core.event import Envelope
from orlop.core.wire.common import any_of, nanoseconds, timestamp, typed_of
from orlop.errors import InvalidArgument, OrlopError
from orlop.events.exchange import Exchange
from orlop.rpc.scope import namespace_of
from orlop.rpc.service import Call


class EventsService:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def Publish(self, request: api.PublishRequest, call: Call) -> Empty:
        try:
            namespace = namespace_of(call)
        except OrlopError as error:
            raise error.within("failed publishing event") from None
        self._exchange.publish_typed(namespace, request.topic, typed_of(request.event))
        return Empty()

    async def Forward(self, request: api.ForwardRequest, call: Call) -> Empty:
        if not request.HasField("envelope"):
            raise InvalidArgument("envelope must be set on forward request")
        self._exchange.forward(envelope_of(request.envelope))
        return Empty()

    async def Subscribe(self, request: api.SubscribeRequest, call: Call) -> AsyncIterator[WireEnvelope]:
        try:
            subscription = self._exchange.subscribe(list(request.filters))
        except OrlopError as error:
            raise error.within("subscription error") from None
        with subscription:
            async for envelope in subscription:
                yield envelope_to(envelope)


def envelope_of(message: WireEnvelope) -> Envelope:
    return Envelope(nanoseconds(message.timestamp), message.namespace, message.topic, typed_of(message.event))


def envelope_to(envelope: Envelope) -> WireEnvelope:
    return WireEnvelope(
        timestamp=timestamp(envelope.timestamp),
        namespace=envelope.namespace,
        topic=envelope.topic,
        event=any_of(envelope.event),
    )

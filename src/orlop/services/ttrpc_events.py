"""The Events service over ttrpc: shims forward their events to it."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.ttrpc.events.v1 import events_pb2 as api
from orlop.errors import InvalidArgument
from orlop.events.exchange import Exchange
from orlop.rpc.service import Call
from orlop.services.events import envelope_of


class TtrpcEventsService:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def Forward(self, request: api.ForwardRequest, call: Call) -> Empty:
        if not request.HasField("envelope"):
            raise InvalidArgument("envelope must be set on forward request")
        self._exchange.forward(envelope_of(request.envelope))
        return Empty()

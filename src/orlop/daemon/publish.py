"""`orlopd publish`: an event from standard input to the daemon. Shims of other makers call it."""

from __future__ import annotations

import sys

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from orlop.api.services.events.v1 import events_pb2
from orlop.errors import InvalidArgument
from orlop.rpc.channel import GrpcChannel, Stub
from orlop.rpc.scope import NAMESPACE_HEADER

_LIMIT = 16 << 20
_TIMEOUT = 10.0


async def publish(address: str, namespace: str, topic: str) -> None:
    """Publishes the `google.protobuf.Any` on standard input under `topic`. Raises what the daemon answers."""
    if not topic:
        raise InvalidArgument("topic required to publish event")
    payload = Any()
    try:
        payload.ParseFromString(sys.stdin.buffer.read(_LIMIT))
    except DecodeError as error:
        raise InvalidArgument(f"event on standard input: {error}") from None
    channel = GrpcChannel(address)
    try:
        service = events_pb2.DESCRIPTOR.services_by_name["Events"]
        stub = Stub(channel, service, {NAMESPACE_HEADER: namespace} if namespace else {})
        await stub.call("Publish", events_pb2.PublishRequest(topic=topic, event=payload), timeout=_TIMEOUT)
    finally:
        await channel.close()

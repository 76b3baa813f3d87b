"""A service, independent of its transport: methods by name, typed by the descriptors of `api/`.

A servicer is a plain object with a coroutine a method, named as the wire names it:

    class ImagesService:
        async def Get(self, request: GetImageRequest, call: Call) -> GetImageResponse: ...
        async def List(self, request: ..., call: Call) -> AsyncIterator[...]: ...      # server stream: a generator
        async def Write(self, requests: AsyncIterator[...], call: Call) -> AsyncIterator[...]: ...   # both ways

    service = Service(images_pb2.DESCRIPTOR.services_by_name["Images"], ImagesService(...))

The same `Service` is served by gRPC on either engine, by ttrpc and in process. Servicers raise the vocabulary of
`orlop.errors`; the transport makes statuses of them. This module knows neither transport nor `core/`: shims use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass


@dataclass(slots=True)
class Call:
    """One call as its servicer sees it: `metadata` has the first value of each header, keys in lower case.

    `orlop.rpc.scope.scope_of` tells the namespace and lease.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service: its types, its kind of streaming, and the servicer's function."""

    name: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool
    function: Callable[..., Any] | None
    """None where the servicer does not offer it: the transport answers Unimplemented."""

    @classmethod
    def of(cls, descriptor: MethodDescriptor, servicer: object | None) -> Method:
        return cls(
            name=descriptor.name,
            request=GetMessageClass(descriptor.input_type),
            response=GetMessageClass(descriptor.output_type),
            client_streaming=descriptor.client_streaming,
            server_streaming=descriptor.server_streaming,
            function=getattr(servicer, descriptor.name, None),
        )


class Service:
    """`servicer` offered as the service of `descriptor`."""

    def __init__(self, descriptor: ServiceDescriptor, servicer: object) -> None:
        self.name: str = descriptor.full_name
        self.servicer = servicer
        self.methods: dict[str, Method] = {method.name: Method.of(method, servicer) for method in descriptor.methods}

"""A service with one method of each kind of streaming, and a servicer that does what a request's text says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.wrappers_pb2 import StringValue

from orlop.errors import KINDS, NotFound
from orlop.rpc.service import Call, Service

NAME = "orlop.test.Echo"


def _describe() -> ServiceDescriptor:
    file = descriptor_pb2.FileDescriptorProto(
        name="orlop/test/echo.proto",
        package="orlop.test",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    service = file.service.add(name="Echo")
    for name, up, down in (("Unary", 0, 0), ("Down", 0, 1), ("Up", 1, 0), ("Both", 1, 1), ("Missing", 0, 0)):
        service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=bool(up),
            server_streaming=bool(down),
        )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindServiceByName(NAME)


DESCRIPTOR = _describe()


class EchoService:
    """`Missing` is in the contract and not offered."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.calls: list[Call] = []
        self.produced = 0

    async def Unary(self, request: StringValue, call: Call) -> StringValue:
        self.calls.append(call)
        return await self._do(request.value)

    async def Down(self, request: StringValue, call: Call) -> AsyncIterator[StringValue]:
        """Request `n` gives n answers, `n,text` does `text` afterwards, `flood` never ends."""
        if request.value == "flood":
            while True:
                self.produced += 1
                yield StringValue(value="x" * 65536)
        count, _, then = request.value.partition(",")
        for number in range(int(count)):
            yield StringValue(value=str(number))
        if then:
            yield await self._do(then)

    async def Up(self, requests: AsyncIterator[StringValue], call: Call) -> StringValue:
        return await self._do(" ".join([request.value async for request in requests]))

    async def Both(self, requests: AsyncIterator[StringValue], call: Call) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield await self._do(request.value)

    async def _do(self, text: str) -> StringValue:
        verb, _, argument = text.partition(":")
        match verb:
            case "fail":
                raise KINDS[int(argument)]("thing")
            case "bug":
                raise KeyError("a secret")
            case "errno":
                raise OSError(int(argument), "words", "/the/path")
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._fail())
            case "size":
                return StringValue(value="x" * int(argument))
            case "cancel":
                raise asyncio.CancelledError
            case "timeout":
                async with asyncio.timeout(0):
                    await asyncio.get_running_loop().create_future()
            case "wait":
                self.entered.set()
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
        return StringValue(value=text)

    async def _fail(self) -> None:
        raise NotFound("inner")


def service(servicer: EchoService) -> Service:
    return Service(DESCRIPTOR, servicer)

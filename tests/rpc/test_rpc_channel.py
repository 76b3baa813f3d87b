"""One suite for every way to call: over both gRPC engines and in process."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import rpc_echo
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from rpc_echo import EchoService

from orlop.api.grpc_health.v1 import health_pb2
from orlop.api.services.version.v1 import version_pb2
from orlop.errors import (
    KINDS,
    Canceled,
    DeadlineExceeded,
    NotFound,
    OrlopError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)
from orlop.rpc import health
from orlop.rpc.channel import Channel, GrpcChannel, InProcessChannel, Stub
from orlop.rpc.server import GrpcServer

WAYS = ["native", "grpcio", "in process"]

way = pytest.mark.parametrize("way", WAYS)


@asynccontextmanager
async def calling(way: str, tmp_path: Path) -> AsyncIterator[tuple[EchoService, Channel, Stub]]:
    servicer = EchoService()
    services = [rpc_echo.service(servicer), health.service()]
    channel: Channel
    if way == "in process":
        channel = InProcessChannel(services)
        yield servicer, channel, Stub(channel, rpc_echo.DESCRIPTOR, {"Key": "value", "other": "one"})
        await channel.close()
        return
    server = GrpcServer(way)  # type: ignore[arg-type]
    for service in services:
        server.add(service)
    await server.start(str(tmp_path / "s"))
    try:
        channel = GrpcChannel(str(tmp_path / "s"))
        yield servicer, channel, Stub(channel, rpc_echo.DESCRIPTOR, {"key": "value", "other": "one"})
        await channel.close()
    finally:
        await server.stop()
    assert os.listdir(tmp_path) == []


def text(value: str) -> StringValue:
    return StringValue(value=value)


async def feed(*values: str) -> AsyncIterator[StringValue]:
    for value in values:
        yield text(value)


@way
async def test_each_kind_of_method_answers(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (_, _, stub):
        assert (await stub.call("Unary", text("hello"))).value == "hello"
        assert (await stub.call("Unary", text(""))).value == ""
        assert [a.value async for a in stub.stream("Down", text("3"))] == ["0", "1", "2"]
        assert [a.value async for a in stub.stream("Down", text("0"))] == []
        assert [a.value async for a in stub.duplex("Both", feed("a", "b"))] == ["a", "b"]
        assert [a.value async for a in stub.duplex("Up", feed("a", "b"))] == ["a b"]


@way
@pytest.mark.parametrize("code", sorted(KINDS))
async def test_an_error_keeps_its_kind_and_text(way: str, tmp_path: Path, code: int) -> None:
    kind = KINDS[code]
    async with calling(way, tmp_path) as (_, _, stub):
        for call in (
            stub.call("Unary", text(f"fail:{code}")),
            anext(stub.stream("Down", text(f"0,fail:{code}"))),
            anext(stub.duplex("Both", feed(f"fail:{code}"))),
            anext(stub.duplex("Up", feed(f"fail:{code}"))),
        ):
            with pytest.raises(OrlopError) as caught:
                await call
            assert type(caught.value) is kind
            assert str(caught.value) == str(kind("thing"))


@way
async def test_an_error_comes_after_the_answers_before_it(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (_, _, stub):
        answers = stub.stream("Down", text("2,fail:5"))
        assert [(await anext(answers)).value, (await anext(answers)).value] == ["0", "1"]
        with pytest.raises(NotFound, match=r"^thing: not found$"):
            await anext(answers)


@way
@pytest.mark.parametrize(
    ("request_text", "kind", "message"),
    [
        (f"errno:{errno.ENOSPC}", ResourceExhausted, "words: /the/path"),
        (f"errno:{errno.EDQUOT}", ResourceExhausted, "words: /the/path"),
        (f"errno:{errno.EMFILE}", Unavailable, "words: /the/path"),
        (f"errno:{errno.EACCES}", Unknown, "words: /the/path"),
        ("group", NotFound, "inner: not found"),
        ("cancel", Canceled, "context canceled"),
        ("timeout", DeadlineExceeded, "context deadline exceeded"),
        ("bug", Unknown, "unexpected failure in /orlop.test.Echo/Unary: the server's log has the details"),
    ],
)
async def test_a_python_exception_becomes_a_status(
    way: str, tmp_path: Path, request_text: str, kind: type[OrlopError], message: str
) -> None:
    async with calling(way, tmp_path) as (_, _, stub):
        with pytest.raises(kind) as caught:
            await stub.call("Unary", text(request_text))
        assert str(caught.value) == message
        assert (await stub.call("Unary", text("after"))).value == "after"


@way
async def test_what_nobody_offers_is_unimplemented(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (_, channel, stub):
        with pytest.raises(Unimplemented, match=r"^unknown method Missing for service orlop.test.Echo$"):
            await stub.call("Missing", text(""))
        with pytest.raises(Unimplemented, match=r"^unknown method Nope for service orlop.test.Echo$"):
            await channel.unary("/orlop.test.Echo/Nope", text(""), StringValue)
        with pytest.raises(Unimplemented, match=r"^unknown service a.b$"):
            await channel.unary("/a.b/C", text(""), StringValue)
        with pytest.raises(Unimplemented, match=r"^unknown service a.b$"):
            await anext(channel.server_stream("/a.b/C", text(""), StringValue))
        with pytest.raises(Unimplemented, match=r"^unknown service a.b$"):
            await anext(channel.duplex("/a.b/C", feed("x"), StringValue))
        assert (await stub.call("Unary", text("after"))).value == "after"


@way
async def test_headers_reach_the_servicer_in_lower_case(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (servicer, _, stub):
        await stub.call("Unary", text(""))
        metadata = servicer.calls[0].metadata
        assert metadata.get("key") == metadata["key"] == "value"
        assert metadata.get("other") == "one"
        assert metadata.get("none") is None
        assert metadata.get("none", "default") == "default"
        assert "none" not in metadata
        assert dict(metadata)["key"] == "value"


@way
async def test_a_thousand_calls_at_once_each_get_their_own_answer(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (_, _, stub):
        numbers = [str(number) for number in range(1000)]
        answers = await asyncio.gather(*(stub.call("Unary", text(number)) for number in numbers))
        assert [answer.value for answer in answers] == numbers


@way
async def test_a_thousand_calls_wait_at_once_and_others_go_on(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (servicer, _, stub):
        waits = [asyncio.create_task(stub.call("Unary", text("wait"))) for _ in range(1100)]
        while len(servicer.calls) < len(waits):
            await servicer.entered.wait()
            servicer.entered.clear()
        assert (await stub.call("Unary", text("on"))).value == "on"
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


@way
async def test_a_caller_that_is_cancelled_cancels_the_servicer(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (servicer, _, stub):
        for call in (stub.call("Unary", text("wait")), anext(stub.stream("Down", text("0,wait")))):
            servicer.entered.clear()
            servicer.cancelled.clear()
            task = asyncio.ensure_future(call)
            await servicer.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await servicer.cancelled.wait()


@way
async def test_leaving_a_stream_cancels_the_servicer(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (servicer, _, stub):
        async with aclosing(stub.stream("Down", text("1,wait"))) as answers:
            assert (await anext(answers)).value == "0"
            waiting = asyncio.ensure_future(anext(answers))
            await servicer.entered.wait()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await servicer.cancelled.wait()


@way
async def test_a_deadline_ends_the_call_on_both_sides(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (servicer, _, stub):
        with pytest.raises(DeadlineExceeded, match=r"^context deadline exceeded$"):
            await stub.call("Unary", text("wait"), timeout=0.2)
        await servicer.cancelled.wait()


@way
async def test_both_sides_own_their_messages(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (_, _, stub):
        request = text("before")
        answer = await stub.call("Unary", request)
        answer.value = "changed"
        assert request.value == "before"


@way
async def test_a_closed_channel_is_unavailable(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (_, channel, stub):
        await channel.close()
        with pytest.raises(Unavailable, match=r"^the channel is closed$"):
            await stub.call("Unary", text("x"))


@way
async def test_the_server_as_a_whole_is_healthy(way: str, tmp_path: Path) -> None:
    async with calling(way, tmp_path) as (_, channel, _):
        stub = Stub(channel, health_pb2.DESCRIPTOR.services_by_name["Health"])
        status = health_pb2.HealthCheckResponse
        assert (await stub.call("Check", health_pb2.HealthCheckRequest())).status == status.SERVING
        with pytest.raises(NotFound, match=r"^unknown service$"):
            await stub.call("Check", health_pb2.HealthCheckRequest(service="x"))
        async with aclosing(stub.stream("Watch", health_pb2.HealthCheckRequest())) as answers:
            assert (await anext(answers)).status == status.SERVING


async def test_calling_a_daemon_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    channel = GrpcChannel(f"unix://{tmp_path}/none")
    stub = Stub(channel, version_pb2.DESCRIPTOR.services_by_name["Version"])
    with pytest.raises(Unavailable):
        await stub.call("Version", Empty())
    await channel.close()

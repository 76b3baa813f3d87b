"""ttrpc between our own two ends, and against frames that no good peer sends."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.api.services.namespaces.v1 import namespace_pb2
from orlop.api.services.version.v1 import version_pb2
from orlop.api.ttrpc import request_pb2 as wire
from orlop.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    OrlopError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)
from orlop.rpc.service import Call, Service
from orlop.rpc.ttrpc import Client, Server, TtrpcClosed
from orlop.rpc.ttrpc.frame import MAX_PAYLOAD, Frame, FrameParser

HEADER = struct.Struct(">IIBB")
NAMESPACES = "containerd.services.namespaces.v1.Namespaces"


class Namespaces:
    """A servicer whose method's behaviour a call's name chooses."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.calls: list[Call] = []

    async def Get(self, request: namespace_pb2.GetNamespaceRequest, call: Call) -> namespace_pb2.GetNamespaceResponse:
        self.calls.append(call)
        match request.name:
            case "missing":
                raise NotFound('namespace "missing"')
            case "bug":
                raise KeyError("a secret")
            case "full":
                raise OSError(errno.ENOSPC, "No space left on device", "/x")
            case "wait":
                self.entered.set()
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "large":
                return namespace_pb2.GetNamespaceResponse(namespace={"name": "x" * (MAX_PAYLOAD + 1)})
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._fail())
        return namespace_pb2.GetNamespaceResponse(namespace={"name": request.name})

    async def _fail(self) -> None:
        raise NotFound("inner")


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[Namespaces, Server, str]]:
    path = str(tmp_path / "s")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    servicer = Namespaces()
    server = Server([Service(namespace_pb2.DESCRIPTOR.services_by_name["Namespaces"], servicer)])
    await server.serve(sock)
    try:
        yield servicer, server, path
    finally:
        await server.close()


async def get(client: Client, name: str, **kwargs: object) -> str:
    response = await client.call(
        NAMESPACES,
        "Get",
        namespace_pb2.GetNamespaceRequest(name=name),
        namespace_pb2.GetNamespaceResponse,
        **kwargs,  # type: ignore[arg-type]
    )
    return response.namespace.name


async def test_a_ttrpc_call_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, _, path), await Client.connect("unix://" + path, 5) as client:
        assert await get(client, "moby") == "moby"


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("missing", NotFound, 'namespace "missing": not found'),
        ("full", ResourceExhausted, "No space left on device: /x"),
        ("group", NotFound, "inner: not found"),
        ("large", ResourceExhausted, f"message length {MAX_PAYLOAD + 1 + 16} exceed maximum message size of 4194304"),
    ],
)
async def test_ttrpc_errors_keep_their_kind_and_text(tmp_path: Path, name: str, kind: type, text: str) -> None:
    async with serving(tmp_path) as (_, _, path), await Client.connect(path, 5) as client:
        with pytest.raises(kind) as caught:
            await get(client, name)
        if name != "large":
            assert str(caught.value) == text
        assert await get(client, "after") == "after"


async def test_a_python_exception_does_not_tell_a_ttrpc_client_its_text(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, _, path), await Client.connect(path, 5) as client:
        with pytest.raises(Unknown) as caught:
            await get(client, "bug")
        assert "secret" not in str(caught.value)
        assert "KeyError" not in str(caught.value)


async def test_an_unknown_ttrpc_service_and_method_are_unimplemented(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, _, path), await Client.connect(path, 5) as client:
        with pytest.raises(Unimplemented, match=r"^service nope$"):
            await client.call("nope", "Get", Empty(), Empty)
        with pytest.raises(Unimplemented, match=r"^method Nope$"):
            await client.call(NAMESPACES, "Nope", Empty(), Empty)
        with pytest.raises(Unimplemented, match=r"^method List$"):  # known to the descriptor, not to the servicer
            await client.call(NAMESPACES, "List", Empty(), Empty)


async def test_a_thousand_ttrpc_calls_share_a_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, _, path), await Client.connect(path, 5) as client:
        names = [f"n{i}" for i in range(1000)]
        assert await asyncio.gather(*(get(client, name) for name in names)) == names


async def test_the_first_value_of_a_ttrpc_header_counts_and_keys_are_lower_case(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, _, path):
        request = wire.Request(service=NAMESPACES, method="Get")
        for key, value in (("Key", "one"), ("key", "two"), ("other", "")):
            request.metadata.add(key=key, value=value)
        await talk(path, frame(1, 1, request.SerializeToString()), answers=1)
        assert servicer.calls[0].metadata == {"key": "one", "other": ""}


async def test_a_ttrpc_deadline_ends_the_call_on_both_sides(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, _, path), await Client.connect(path, 5) as client:
        with pytest.raises(DeadlineExceeded, match=r"^context deadline exceeded$"):
            await get(client, "wait", timeout=0.05)
        await servicer.cancelled.wait()
        assert await get(client, "after") == "after"


async def test_ttrpc_calls_in_flight_are_told_that_the_server_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, server, path), await Client.connect(path, 5) as client:
        call = asyncio.create_task(get(client, "wait"))
        await servicer.entered.wait()
        await server.close()
        with pytest.raises(TtrpcClosed, match=r"^ttrpc: closed$"):
            await call
        await client.wait_closed()
        with pytest.raises(TtrpcClosed):
            await get(client, "later")


async def test_a_lost_ttrpc_connection_cancels_its_calls(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, _, path):
        client = await Client.connect(path, 5)
        call = asyncio.create_task(get(client, "wait"))
        await servicer.entered.wait()
        await client.close()
        with pytest.raises(TtrpcClosed):
            await call
        await servicer.cancelled.wait()


async def test_a_call_that_was_given_up_does_not_disturb_the_next(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, _, path), await Client.connect(path, 5) as client:
        call = asyncio.create_task(get(client, "wait"))
        await servicer.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        servicer.release.set()
        assert await get(client, "after") == "after"


async def test_closing_with_grace_lets_calls_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, server, path), await Client.connect(path, 5) as client:
        call = asyncio.create_task(get(client, "wait"))
        await servicer.entered.wait()
        closing = asyncio.create_task(server.close(grace=30))
        servicer.release.set()
        assert await call == "wait"
        await closing


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_peer_that_is_not_authorized_is_cut_off(tmp_path: Path, loop: str) -> None:
    import uvloop

    seen: list[tuple[int, int, int]] = []

    def refuse(pid: int, uid: int, gid: int) -> bool:
        seen.append((pid, uid, gid))
        return False

    async def main() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "s"))
        server = Server()
        await server.serve(sock, authorize=refuse)
        client = await Client.connect(str(tmp_path / "s"), 5)
        with pytest.raises(TtrpcClosed):
            await client.call("x", "y", Empty(), Empty)
        await server.close()

    import os

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main())
    assert seen == [(os.getpid(), os.getuid(), os.getgid())]


async def test_connecting_to_nobody_is_unavailable(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(Unavailable, match="no such file or directory"):
        await Client.connect(path, 1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        with pytest.raises(Unavailable, match="connection refused"):
            await Client.connect(path, 1)


async def test_connecting_to_a_server_that_accepts_nobody_ends_at_the_deadline(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(0)
        first = await Client.connect(path, 1)
        with pytest.raises(DeadlineExceeded):
            await Client.connect(path, 0.05)
        await first.close()


async def test_an_abstract_address_begins_with_an_at_sign(tmp_path: Path) -> None:
    name = f"orlop-test-{tmp_path}"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("\0" + name)
    server = Server()
    await server.serve(sock)
    async with await Client.connect("@" + name, 5) as client:
        with pytest.raises(Unimplemented):
            await client.call("x", "y", Empty(), Empty)
    await server.close()


def test_a_service_cannot_be_offered_twice() -> None:
    service = Service(version_pb2.DESCRIPTOR.services_by_name["Version"], object())
    with pytest.raises(ValueError, match="already"):
        Server([service, service])


# Frames of peers that do not keep to the rules.


def frame(stream: int, kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return HEADER.pack(len(payload), stream, kind, flags) + payload


async def talk(path: str, data: bytes, answers: int) -> list[tuple[int, int, wire.Response]]:
    """Sends `data` and reads that many response frames."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        heard = []
        for _ in range(answers):
            length, stream, kind, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
            heard.append((stream, kind, wire.Response.FromString(await reader.readexactly(length))))
        return heard
    finally:
        writer.close()
        await writer.wait_closed()


GOOD = wire.Request(service=NAMESPACES, method="Get").SerializeToString()


@pytest.mark.parametrize(
    ("data", "stream", "code", "text"),
    [
        (frame(2, 1, GOOD), 2, 3, "StreamID must be odd for client initiated streams"),
        (frame(0, 1, GOOD), 0, 3, "StreamID must be odd for client initiated streams"),
        (frame(7, 3, b"x"), 7, 3, "StreamID is no longer active"),
        (frame(1, 1, b"\xff\xff"), 1, 3, "unmarshal request error: cannot parse invalid wire-format data"),
        (
            frame(1, 1, wire.Request(service=NAMESPACES, method="Get", payload=b"\xff").SerializeToString()),
            1,
            Internal.code,
            "ttrpc: error unmarshalling payload: cannot parse invalid wire-format data",
        ),
        (
            HEADER.pack(MAX_PAYLOAD + 1, 1, 1, 0) + bytes(MAX_PAYLOAD + 1),
            1,
            8,
            "message length 4194305 exceed maximum message size of 4194304",
        ),
    ],
)
async def test_a_bad_frame_is_answered_on_its_stream_and_the_connection_goes_on(
    tmp_path: Path, data: bytes, stream: int, code: int, text: str
) -> None:
    async with serving(tmp_path) as (_, _, path):
        first, second = await talk(path, data + frame(9, 1, GOOD), answers=2)
        assert first == (stream, 2, wire.Response(status=Status(code=code, message=text)))
        assert second[0] == 9
        assert not second[2].status.code


async def test_a_stream_number_is_not_used_twice(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, _, path):
        heard = await talk(path, frame(5, 1, GOOD) + frame(5, 1, GOOD) + frame(3, 1, GOOD), answers=3)
        refused = [answer.status.message for _, _, answer in heard if answer.status.code == 3]
        assert refused == ["StreamID cannot be re-used and must increment"] * 2


async def test_a_kind_of_frame_that_is_not_known_is_ignored(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, _, path):
        ((stream, _, _),) = await talk(path, frame(1, 77, b"future") + frame(3, 1, GOOD), answers=1)
        assert stream == 3


async def test_a_peer_that_never_reads_is_not_read_from_either(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, _, path):
        request = wire.Request(
            service=NAMESPACES,
            method="Get",
            payload=namespace_pb2.GetNamespaceRequest(name="n" * (1 << 20)).SerializeToString(),
        ).SerializeToString()
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, path)

        async def flood() -> None:
            for number in range(1, 2001, 2):
                await loop.sock_sendall(sock, frame(number, 1, request))

        flooding = asyncio.create_task(flood())
        async with await Client.connect(path, 5) as client:
            done = 0
            while len(servicer.calls) - done > 0 or not done:  # until a whole call passes without one of the flood's
                done = len(servicer.calls) + 1
                assert await get(client, "other") == "other"
        assert not flooding.done()
        assert len(servicer.calls) < 500
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        sock.close()


# The parser.


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40))),
    st.lists(st.integers(1, 60)),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(frame(stream, kind, payload, flags) for stream, kind, flags, payload in frames)
    ends = {sum(10 + len(payload) for *_, payload in frames[:count]) for count in range(len(frames) + 1)}
    parser = FrameParser()
    heard: list[Frame] = []
    at = 0
    for cut in cuts:
        heard += parser.feed(data[at : at + cut])
        at = min(at + cut, len(data))
        assert parser.is_within == (at not in ends)
    heard += parser.feed(data[at:])
    assert heard == [Frame(*parts) for parts in frames]
    assert not parser.is_within


@given(st.integers(MAX_PAYLOAD + 1, MAX_PAYLOAD + 100), st.integers(1, 100), st.integers(1 << 14, 1 << 20))
@settings(max_examples=20, deadline=None)
def test_the_parser_drops_what_is_too_large_without_keeping_it(length: int, first: int, cut: int) -> None:
    """Whatever way the header is cut, and the rest in pieces as sockets give them."""
    data = HEADER.pack(length, 3, 1, 0) + bytes(length) + frame(5, 1, b"next")
    parser = FrameParser()
    heard: list[Frame] = []
    for start, end in itertools.pairwise([0, *range(first, len(data), cut), len(data)]):
        heard += parser.feed(data[start:end])
        assert len(parser._buffer) < 64
    assert heard == [Frame(3, 1, 0, b"", oversize=length), Frame(5, 1, 0, b"next")]


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_garbage_never_stops_a_ttrpc_server(data: bytes) -> None:
    async def main() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind("")  # the kernel picks an abstract name
        address = "@" + sock.getsockname()[1:].decode()
        server = Server([Service(namespace_pb2.DESCRIPTOR.services_by_name["Namespaces"], Namespaces())])
        await server.serve(sock)
        _, writer = await asyncio.open_unix_connection("\0" + address[1:])
        writer.write(data)
        writer.write_eof()
        async with await Client.connect(address, 5) as client:
            assert await get(client, "alive") == "alive"
        writer.close()
        await server.close()

    asyncio.run(main())


def test_ttrpc_errors_are_of_the_vocabulary() -> None:
    assert issubclass(TtrpcClosed, OrlopError)
    assert InvalidArgument.code == 3

"""The gRPC server by both engines: its socket, its limits, its end, and clients that are not ours."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import rpc_echo
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from rpc_echo import EchoService

from orlop.api.services.introspection.v1 import introspection_pb2
from orlop.api.services.version.v1 import version_pb2
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError, ResourceExhausted
from orlop.rpc.channel import GrpcChannel, Stub
from orlop.rpc.server import GrpcServer
from orlop.rpc.service import Call, Service

engine = pytest.mark.parametrize("engine", ["native", "grpcio"])


@asynccontextmanager
async def serving(engine: Any, address: Path, **limits: int) -> AsyncIterator[tuple[EchoService, GrpcServer]]:
    servicer = EchoService()
    server = GrpcServer(engine, **limits)
    server.add(rpc_echo.service(servicer))
    await server.start(str(address))
    try:
        yield servicer, server
    finally:
        await server.stop()


@asynccontextmanager
async def raw(address: Path) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
        yield channel


@engine
async def test_the_socket_is_for_its_owner_and_group(engine: str, tmp_path: Path) -> None:
    address = tmp_path / "new" / "deep" / "s"
    async with serving(engine, address):
        status = address.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o770
        for beside in address.parent.iterdir():
            assert beside == address or stat.S_IMODE(beside.stat().st_mode) == 0o700
    assert list(address.parent.iterdir()) == []


@engine
@pytest.mark.root
async def test_the_socket_and_a_new_parent_get_the_owner_that_is_asked_for(engine: Any, tmp_path: Path) -> None:
    address = tmp_path / "new" / "s"
    server = GrpcServer(engine)
    await server.start(str(address), uid=12, gid=34)
    assert (address.stat().st_uid, address.stat().st_gid) == (12, 34)
    assert (address.parent.stat().st_uid, address.parent.stat().st_gid) == (12, 34)
    await server.stop()


async def test_whoever_connects_is_told_of(tmp_path: Path) -> None:
    told: list[int] = []
    server = GrpcServer("native", on_connection=lambda: told.append(1))
    await server.start(str(tmp_path / "s"))
    for count in (1, 2):
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        async with asyncio.timeout(20):
            while len(told) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        writer.close()
    await server.stop()
    assert len(told) == 2


@engine
async def test_an_old_socket_is_replaced(engine: str, tmp_path: Path) -> None:
    address = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(address))
    async with serving(engine, address), raw(address) as channel:
        assert await channel.unary_unary("/orlop.test.Echo/Unary")(b"") == b""


@engine
async def test_a_socket_path_has_a_limit_and_can_be_that_long(engine: Any, tmp_path: Path) -> None:
    address = tmp_path / ("s" * (104 - len(str(tmp_path)) - 1))
    async with serving(engine, address), raw(address) as channel:
        assert await channel.unary_unary("/orlop.test.Echo/Unary")(b"") == b""
        assert [m async for m in channel.stream_stream("/orlop.test.Echo/Both")(iter([b""]))] == [b""]
    with pytest.raises(InvalidArgument, match=r"unix socket path too long \(> 104\)$"):
        await GrpcServer(engine).start(f"{address}s")


@engine
async def test_a_socket_that_somebody_else_made_is_left_alone_at_the_end(engine: str, tmp_path: Path) -> None:
    address = tmp_path / "s"
    async with serving(engine, address):
        os.unlink(address)
        address.write_text("another's")
    assert address.read_text() == "another's"


async def test_a_private_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "s~").symlink_to(tmp_path)
    with pytest.raises(FailedPrecondition):
        await GrpcServer("native").start(str(tmp_path / "s"))


async def test_what_a_killed_server_left_is_used_again(tmp_path: Path) -> None:
    address = tmp_path / "s"
    code = (
        "import asyncio, os, signal, sys\n"
        "from orlop.rpc.server import GrpcServer\n"
        "async def main():\n"
        "    await GrpcServer('native').start(sys.argv[1])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(address))
    assert await process.wait() == -9
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s~"}
    async with serving("native", address), raw(address) as channel:
        assert [m async for m in channel.stream_stream("/orlop.test.Echo/Both")(iter([b""]))] == [b""]
    assert list(tmp_path.iterdir()) == []


@engine
async def test_the_first_value_of_a_repeated_header_counts(engine: str, tmp_path: Path) -> None:
    async with serving(engine, tmp_path / "s") as (servicer, _), raw(tmp_path / "s") as channel:
        await channel.unary_unary("/orlop.test.Echo/Unary")(
            b"", metadata=(("key", "one"), ("key", "two"), ("binary-bin", b"\xff"))
        )
        metadata = servicer.calls[0].metadata
        assert metadata.get("key") == metadata["key"] == dict(metadata)["key"] == "one"
        assert "binary-bin" not in metadata
        assert len(metadata) == len(set(metadata))


@engine
async def test_a_request_that_cannot_be_parsed_is_internal(engine: str, tmp_path: Path) -> None:
    async with serving(engine, tmp_path / "s"), raw(tmp_path / "s") as channel:
        for call in (
            channel.unary_unary("/orlop.test.Echo/Unary")(b"\xff"),
            channel.unary_stream("/orlop.test.Echo/Down")(b"\xff").read(),
            channel.stream_stream("/orlop.test.Echo/Both")(iter([b"\xff"])).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.INTERNAL
            assert caught.value.details().startswith("grpc: error unmarshalling request: proto:")


@engine
async def test_messages_over_the_limits_are_refused_both_ways(engine: str, tmp_path: Path) -> None:
    async with serving(engine, tmp_path / "s", max_receive=1000, max_send=2000):
        channel = GrpcChannel(str(tmp_path / "s"))
        stub = Stub(channel, rpc_echo.DESCRIPTOR)
        with pytest.raises(ResourceExhausted, match=r"(?i)received message larger than max \(1003 vs\. 1000\)"):
            await stub.call("Unary", StringValue(value="x" * 1000))
        with pytest.raises(
            ResourceExhausted, match=r"^grpc: trying to send message larger than max \(2003 vs\. 2000\)$"
        ):
            await stub.call("Unary", StringValue(value="size:2000"))
        with pytest.raises(ResourceExhausted):
            await anext(stub.stream("Down", StringValue(value="0,size:2000")))
        assert (await stub.call("Unary", StringValue(value="x" * 900))).value == "x" * 900
        await channel.close()


@engine
async def test_messages_of_sixteen_mebibytes_pass(engine: str, tmp_path: Path) -> None:
    async with serving(engine, tmp_path / "s"):
        channel = GrpcChannel(str(tmp_path / "s"))
        large = StringValue(value="x" * ((16 << 20) - 100))
        assert await Stub(channel, rpc_echo.DESCRIPTOR).call("Unary", large) == large
        await channel.close()


@engine
async def test_stopping_cuts_off_calls_that_wait(engine: str, tmp_path: Path) -> None:
    async with serving(engine, tmp_path / "s") as (servicer, server):
        channel = GrpcChannel(str(tmp_path / "s"))
        call = asyncio.create_task(Stub(channel, rpc_echo.DESCRIPTOR).call("Unary", StringValue(value="wait")))
        await servicer.entered.wait()
        await server.stop()
        with pytest.raises(OrlopError):
            await call
        await servicer.cancelled.wait()
        await channel.close()


@engine
async def test_a_client_that_does_not_read_stops_its_stream_and_nobody_else(engine: str, tmp_path: Path) -> None:
    async with serving(engine, tmp_path / "s") as (servicer, _), raw(tmp_path / "s") as channel:
        flood = channel.unary_stream("/orlop.test.Echo/Down")(StringValue(value="flood").SerializeToString())
        await flood.read()
        other = channel.unary_unary("/orlop.test.Echo/Unary")
        before, quiet = 0, 0
        while quiet < 50:
            await other(b"")
            quiet = quiet + 1 if servicer.produced == before else 0
            before = servicer.produced
        assert servicer.produced < 2000
        flood.cancel()


@engine
def test_names_and_engines_are_checked(engine: Any) -> None:
    server = GrpcServer(engine)
    server.add(rpc_echo.service(EchoService()))
    with pytest.raises(ValueError, match="already"):
        server.add(rpc_echo.service(EchoService()))
    with pytest.raises(InvalidArgument, match="neither native nor grpcio"):
        GrpcServer("other")  # type: ignore[arg-type]


class _Version:
    async def Version(self, request: Empty, call: Call) -> version_pb2.VersionResponse:
        return version_pb2.VersionResponse(version="v0-orlop-test", revision="abc")


class _Introspection:
    async def Server(self, request: Empty, call: Call) -> introspection_pb2.ServerResponse:
        return introspection_pb2.ServerResponse(uuid="5c9f1d3e-5b0e-4f5e-9f64-3a1b2c3d4e5f", pid=os.getpid())


@pytest.mark.ctr
@engine
async def test_the_real_ctr_reads_the_version(engine: Any, tmp_path: Path) -> None:
    server = GrpcServer(engine)
    server.add(Service(version_pb2.DESCRIPTOR.services_by_name["Version"], _Version()))
    server.add(Service(introspection_pb2.DESCRIPTOR.services_by_name["Introspection"], _Introspection()))
    await server.start(str(tmp_path / "s"))
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            ["ctr", "--address", str(tmp_path / "s"), "version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "v0-orlop-test" in done.stdout
        assert "5c9f1d3e-5b0e-4f5e-9f64-3a1b2c3d4e5f" in done.stdout
        done = await asyncio.to_thread(
            subprocess.run,
            ["ctr", "--address", str(tmp_path / "s"), "namespaces", "ls"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "unknown service containerd.services.namespaces.v1.Namespaces" in done.stderr
    finally:
        await server.stop()

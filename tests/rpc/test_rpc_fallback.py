"""The native engine's grpc.aio: there from the first call that needs it, and no sooner."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc.aio
import rpc_echo
from rpc_echo import EchoService

from orlop.rpc.server import GrpcServer

_BOTH = "/orlop.test.Echo/Both"
_IMPORTS = """
import asyncio, sys
from orlop.rpc import channel, native, server

async def main():
    engine = server.GrpcServer()
    await engine.start(sys.argv[1])
    await engine.stop()

asyncio.run(main())
print(sorted(name for name in sys.modules if name == "grpc" or name.startswith("grpc.")))
"""


def test_grpc_is_not_loaded_by_a_server_that_nobody_streams_to(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTS, str(tmp_path / "s")], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


async def test_clients_that_stream_first_and_later_are_served_at_once(tmp_path: Path) -> None:
    server = GrpcServer("native")
    server.add(rpc_echo.service(EchoService()))
    await server.start(str(tmp_path / "s"))
    try:
        first, later = (grpc.aio.insecure_channel(f"unix:{tmp_path}/s") for _ in range(2))
        async with first, later:
            early = first.stream_stream(_BOTH)()
            await early.write(b"")
            assert await early.read() == b""
            assert [m async for m in later.stream_stream(_BOTH)(iter([b"", b""]))] == [b"", b""]
            await early.write(b"")
            assert await early.read() == b""
            await early.done_writing()
            assert await early.read() is grpc.aio.EOF
    finally:
        await server.stop()
    assert list(tmp_path.iterdir()) == []


async def test_many_first_calls_share_one_engine(tmp_path: Path) -> None:
    server = GrpcServer("native")
    server.add(rpc_echo.service(EchoService()))
    await server.start(str(tmp_path / "s"))

    async def call() -> list[bytes]:
        async with grpc.aio.insecure_channel(
            f"unix:{tmp_path}/s", options=(("grpc.use_local_subchannel_pool", 1),)
        ) as channel:
            return [m async for m in channel.stream_stream(_BOTH)(iter([b"", b""]))]

    try:
        assert await asyncio.gather(*(call() for _ in range(20))) == [[b"", b""]] * 20
    finally:
        await server.stop()


async def test_a_server_ends_while_a_relayed_call_is_open(tmp_path: Path) -> None:
    server = GrpcServer("native")
    server.add(rpc_echo.service(EchoService()))
    await server.start(str(tmp_path / "s"))
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        call = channel.stream_stream(_BOTH)()
        await call.write(b"")
        assert await call.read() == b""
        async with asyncio.timeout(30):
            await server.stop()
            code = await call.code()
    assert code is not grpc.StatusCode.OK

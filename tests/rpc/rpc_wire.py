"""A client that writes and reads frames of HTTP/2 one by one, and so can break every rule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.wrappers_pb2 import StringValue

from orlop.rpc.http2 import frame, hpack

ECHO = "/orlop.test.Echo/"
MANY = frame.MAX_WINDOW - frame.DEFAULT_WINDOW


@dataclass
class Received:
    """A frame; `fields` are what a HEADERS frame says."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    fields: dict[str, str]

    @property
    def number(self) -> int:
        return int.from_bytes(self.payload[:4], "big")


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = hpack.Decoder(1 << 20)

    def write(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def read(self) -> Received:
        """The next frame. Raises IncompleteReadError at the end."""
        upper, lower, kind, flags, stream = frame.HEADER.unpack(await self.reader.readexactly(frame.HEADER_SIZE))
        payload = await self.reader.readexactly(upper << 8 | lower)
        fields = dict(self._decoder.decode(payload)[0]) if kind == frame.HEADERS else {}
        return Received(kind, flags, stream, payload, fields)

    async def until(self, wanted: Callable[[Received], bool]) -> Received:
        async with asyncio.timeout(30):
            while not wanted(one := await self.read()):
                pass
            return one

    async def status(self, stream: int) -> tuple[int, str]:
        """The status of the call on `stream`, and its message as it travels."""
        fields = (await self.until(lambda one: one.stream == stream and "grpc-status" in one.fields)).fields
        return int(fields["grpc-status"]), fields.get("grpc-message", "")

    async def kind(self, kind: int, stream: int | None = None) -> Received:
        return await self.until(lambda one: one.kind == kind and stream in (None, one.stream))

    async def round_trip(self) -> None:
        """Returns when the server has read all that was written."""
        self.write(frame.frame(frame.PING, 0, 0, b"01234567"))
        await self.until(lambda one: one.kind == frame.PING and bool(one.flags & frame.ACK))


@asynccontextmanager
async def connected(
    address: Path, settings: dict[int, int] | None = None, greeting: bytes = frame.PREFACE
) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_unix_connection(str(address))
    wire = Wire(reader, writer)
    wire.write(greeting, frame.settings(settings or {}))
    try:
        yield wire
    finally:
        writer.close()


def block(method: str, *more: tuple[str, str]) -> bytes:
    """The header block of a call of the Echo service's `method`; of `more`, what is there already is replaced."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": ECHO + method,
        "content-type": "application/grpc",
        "te": "trailers",
        **dict(more),
    }
    return b"".join(hpack.literal(name, value) for name, value in fields.items())


def opened(stream: int, method: str, *more: tuple[str, str], end: bool = False) -> bytes:
    flags = frame.END_HEADERS | (frame.END_STREAM if end else 0)
    return frame.frame(frame.HEADERS, flags, stream, block(method, *more))


def message(text: str) -> bytes:
    payload = StringValue(value=text).SerializeToString()
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    """DATA frames that carry `payload`."""
    parts = [payload[at : at + frame.MAX_SIZE] for at in range(0, len(payload), frame.MAX_SIZE)] or [b""]
    last = len(parts) - 1
    return b"".join(
        frame.frame(frame.DATA, frame.END_STREAM if end and number == last else 0, stream, part)
        for number, part in enumerate(parts)
    )

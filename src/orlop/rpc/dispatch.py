"""What both gRPC engines do around a servicer's function: headers, messages, limits, and the words of grpc-go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

from google.protobuf.message import DecodeError, Message

from orlop.errors import Internal, OrlopError, ResourceExhausted, Unimplemented
from orlop.rpc.service import Method, Service

MAX_METADATA = 64 << 10
"""Bytes of headers that a call may have."""
MAX_STREAMS = 1 << 20
"""Calls in flight on a connection: one client's `Wait` and `Subscribe` calls are one stream each."""
_MAX_TEXT = 6 << 10
"""Bytes of a status message as it travels: clients of the gRPC project take 8 KiB of trailers for granted, and of a
longer message they would see neither text nor code."""


class Headers(Mapping[str, str]):
    """The headers of a call, looked up only when somebody asks. The first value of a repeated header counts."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]]) -> None:
        self._pairs = pairs

    def __getitem__(self, key: str) -> str:
        for name, value in self._pairs:
            if name == key and isinstance(value, str):
                return value
        raise KeyError(key)

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        for name, value in self._pairs:
            if name == key and isinstance(value, str):
                return value
        return default

    def __iter__(self) -> Iterator[str]:
        return iter({name: None for name, value in self._pairs if isinstance(value, str)})

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Limits:
    """The largest messages, in bytes, that a server takes and gives."""

    __slots__ = ("receive", "send")

    def __init__(self, receive: int, send: int) -> None:
        self.receive = receive
        self.send = send

    def decode(self, method: Method, payload: bytes) -> Message:
        if len(payload) > self.receive:
            raise ResourceExhausted.verbatim(
                f"grpc: received message larger than max ({len(payload)} vs. {self.receive})"
            )
        try:
            return method.request.FromString(payload)
        except DecodeError:
            raise Internal.verbatim(
                "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"
            ) from None

    def encode(self, message: Message) -> bytes:
        payload = message.SerializeToString()
        if len(payload) > self.send:
            raise ResourceExhausted.verbatim(
                f"grpc: trying to send message larger than max ({len(payload)} vs. {self.send})"
            )
        return payload

    async def decode_all(self, method: Method, payloads: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for payload in payloads:
            yield self.decode(method, payload)


def paths(services: Iterable[Service]) -> dict[str, Method]:
    """The methods that can be called, by their full name."""
    return {
        f"/{service.name}/{method.name}": method
        for service in services
        for method in service.methods.values()
        if method.function is not None
    }


def unknown(path: str, services: Mapping[str, Service]) -> OrlopError:
    """What a call of `path` is told that no method answers."""
    service, slash, method = path.removeprefix("/").rpartition("/")
    if not slash:
        return Unimplemented.verbatim(f'malformed method name: "{path}"')
    if service not in services:
        return Unimplemented.verbatim(f"unknown service {service}")
    return Unimplemented.verbatim(f"unknown method {method} for service {service}")


def shortened(text: str) -> str:
    """`text` as far as it fits into a status message, in which every byte that is not printable takes three."""
    if len(text) * 12 <= _MAX_TEXT:
        return text
    room = _MAX_TEXT
    for index, character in enumerate(text):
        room -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if room < 0:
            return f"{text[:index]}..."
    return text

"""Unary gRPC calls as cheaply as they can be made: one connection, frames made beforehand, answers counted.

Just enough of HTTP/2 (RFC 9113) to measure a server: header blocks are literals without indexing, and received ones
are not decoded; a call is over when its stream ends.
"""

from __future__ import annotations

import socket
import struct
import time

_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_HUGE = (1 << 31) - 1 - 65535


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing, name and value as they are (RFC 7541, 6.2.2)."""

    def text(data: bytes) -> bytes:
        if len(data) < 127:
            return bytes((len(data),)) + data
        return bytes((127, len(data) - 127)) + data

    return b"\0" + text(name.encode()) + text(value.encode())


def calls_per_second(path: str, method: str, seconds: float, callers: int, namespace: str = "default") -> float:
    """Calls of `method` (`/package.Service/Method`, an empty request) answered in a second, `callers` at a time."""
    block = b"".join(
        _literal(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("containerd-namespace", namespace),
        )
    )
    body = b"\0\0\0\0\0"
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    settings = struct.pack(">HI", 4, (1 << 31) - 1)
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, settings)
        + _frame(_WINDOW, 0, 0, struct.pack(">I", _HUGE))
    )
    stream, done, buffer = 1, 0, b""

    def request() -> bytes:
        nonlocal stream
        made = _frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, body)
        stream += 2
        return made

    connection.sendall(b"".join(request() for _ in range(callers)))
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        received = connection.recv(1 << 16)
        if not received:
            raise ConnectionError("the server closed the connection")
        buffer += received
        out, position = [], 0
        while len(buffer) - position >= 9:
            length = int.from_bytes(buffer[position : position + 3], "big")
            if len(buffer) - position < 9 + length:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            if kind == _SETTINGS and not flags & _ACK:
                out.append(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                out.append(_frame(_PING, _ACK, 0, buffer[position + 9 : position + 9 + length]))
            elif kind == _GOAWAY:
                raise ConnectionError("the server said goodbye")
            elif kind in (_HEADERS, _DATA) and flags & _END_STREAM:
                done += 1
                out.append(request())
            position += 9 + length
        buffer = buffer[position:]
        if out:
            connection.sendall(b"".join(out))
    connection.close()
    return done / elapsed

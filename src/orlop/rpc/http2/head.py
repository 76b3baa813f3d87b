"""What the headers of a request say (gRPC over HTTP/2: "Requests")."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from orlop.errors import Internal, InvalidArgument, OrlopError, ResourceExhausted, Unimplemented
from orlop.rpc.http2.hpack import Fields

_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_TIMEOUT_DIGITS = 8
_TEXT, _PSEUDO, _BINARY, _WRONG = range(4)
_CONTENT_TYPE = "application/grpc"


class Malformed(Exception):
    """The headers are none of a request: the stream is reset."""


class Head(NamedTuple):
    """A request's headers: the method's full name, the first value of each header, seconds until nobody waits.

    `refusal` is why the call cannot be served, with the status of HTTP that goes along.
    """

    path: str
    metadata: Mapping[str, str]
    timeout: float | None = None
    refusal: tuple[int, OrlopError] | None = None


def head_of(fields: Fields, *, whole: bool) -> Head:
    """Raises Malformed. `whole` is False if there were more headers than a call may have."""
    pseudo: dict[str, str] = {}
    headers: dict[str, str] = {}
    for name, value in fields:
        kind = _kind(name)
        if kind == _TEXT:
            headers.setdefault(name, value)
        elif kind == _PSEUDO:
            if name in pseudo or headers:
                raise Malformed(f"{name} is there twice, or where it cannot be")
            pseudo[name] = value
        elif kind == _WRONG:
            raise Malformed(f'a header has the name "{name}"')
    metadata = MappingProxyType(headers)
    path = pseudo.get(":path", "")
    if not whole:
        error = ResourceExhausted.verbatim("received metadata size exceeds limit")
        return Head(path, metadata, refusal=(200, error))
    if ":method" not in pseudo or not path:
        raise Malformed("a request without method or path")
    try:
        timeout = _seconds(headers.get("grpc-timeout"))
    except ValueError as malformed:
        return Head(path, metadata, refusal=(400, Internal.verbatim(f"malformed grpc-timeout: {malformed}")))
    return Head(path, metadata, timeout, _refusal(pseudo[":method"], headers))


@lru_cache(maxsize=64)
def _kind(name: str) -> int:
    if name.startswith(":"):
        return _PSEUDO
    if not name or name != name.lower():
        return _WRONG
    return _BINARY if name.endswith("-bin") else _TEXT


def _refusal(method: str, metadata: Mapping[str, str]) -> tuple[int, OrlopError] | None:
    kind = metadata.get("content-type", "")
    if not kind.startswith(_CONTENT_TYPE) or kind[len(_CONTENT_TYPE) :][:1] not in ("", "+", ";"):
        return 415, InvalidArgument.verbatim(f'invalid gRPC request content-type "{kind}"')
    if method != "POST":
        text = f'Received a HEADERS frame with :method "{method}" which should be POST'
        return 405, Internal.verbatim(text)
    encoding = metadata.get("grpc-encoding", "identity")
    if encoding != "identity":
        text = f'grpc: Decompressor is not installed for grpc-encoding "{encoding}"'
        return 200, Unimplemented.verbatim(text)
    return None


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    digits, unit = text[:-1], text[-1:]
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_TIMEOUT_DIGITS and unit in _SECONDS):
        raise ValueError(f'"{text}" is no timeout')
    return int(digits) * _SECONDS[unit]

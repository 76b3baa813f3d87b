"""What can go wrong with a request, and which of our errors it is."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import responses

import msgspec

from orlop.errors import (
    NotFound,
    OrlopError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unknown,
)
from orlop.registry.redaction import printable
from orlop.registry.retries import BROKEN

BODY_LIMIT = 64 << 10
_REQUEST_IDS = ("X-Request-Id", "X-Amzn-Requestid", "X-Amz-Request-Id", "X-GitHub-Request-Id", "CF-Ray")


class Unreachable(Unavailable):
    """No connection came about: another attempt at once would end the same way."""


class Broken(Unavailable):
    """A connection was lost, or nothing came over it for too long: another attempt may do."""


class GivenUp(Unavailable):
    """A connection was lost at each attempt there was."""


class Denied(Unauthenticated):
    """The credentials there are do not do, or there are none."""


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None
    error: str = ""
    details: str = ""


def of_status(status: int, method: str, shown_url: str, body: bytes, headers: Mapping[str, str]) -> OrlopError:
    """The error that an answer stands for, in containerd's words, with what the registry says about it."""
    phrase = responses.get(status, "")
    text = f"unexpected status from {method} request to {shown_url}: {status}{phrase and ' ' + phrase}"
    said = message_of(body)
    if said:
        text = f"{text}: {said}"
    request_id = next((headers[name] for name in _REQUEST_IDS if headers.get(name)), "")
    if request_id:
        text = f"{text} (request id {printable(request_id, 100)})"
    return _KINDS.get(status, Unknown).verbatim(text)


def message_of(body: bytes) -> str:
    """What the body of an error says: the distribution-spec's JSON, an OAuth error, or text."""
    try:
        errors = msgspec.json.decode(body, type=_Errors)
    except (msgspec.DecodeError, RecursionError):
        text = body.decode("utf-8", "replace").lstrip()
        return "" if text[:1] in ("<", "{", "[") else printable(text, 300)
    parts = [": ".join(filter(None, (error.code, error.message))) for error in (errors.errors or [])[:3]]
    parts += [": ".join(filter(None, (errors.error, errors.details)))]
    return printable(", ".join(filter(None, parts)), 500)


_KINDS: dict[int, type[OrlopError]] = {
    401: Denied,
    403: PermissionDenied,
    404: NotFound,
    408: Unavailable,
    429: ResourceExhausted,
    **dict.fromkeys(BROKEN, Unavailable),
}
